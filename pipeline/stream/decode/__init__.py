"""From stored bytes to the pixels of a crop.

In: the bytes of pictures, the settings of the crops (`crop.CropRule`) and the samples' keys. Out: crops in place. `decoder.make_decoder`
gives the `decoder.Decoder` of a run. `segments` and `jpeg` decode no more of a JPEG than its crop needs, `nvimgcodec` is an optional
decoder of rectangles, `device_decoder` makes the crops on a GPU, and `resize` brings a part to the size of the crop.
"""
