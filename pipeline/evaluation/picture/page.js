"use strict";
// The hole is a list of strokes in pixels of the upright picture. A stroke of radius 0 is a rectangle, by two corners that lie across.

const by = (id) => document.getElementById(id);
const canvas = by("canvas"), context = canvas.getContext("2d");
const MOST_BYTES = 64e6;  // of a request, as the server takes it
const SHORT = 480, LONG = 2048;  // pixels of the canvas's longer side: enough to paint on, and as many as phones allow
const INK = "#ff2fd0";

// The file; width, height and a preview of the picture in it, as the server reads it; and what is shown of its filling.
let file = null, picture = null, result = null, resultUrl = "";
let strokes = [], current = null, cursor = null, busy = false, before = false;

const brushRadius = () => Math.max(0.5, (by("size").value / 100) ** 1.5 * 0.2 * Math.max(picture.width, picture.height));
const isRectangle = () => by("rectangle").checked;

function say(text) { by("state").textContent = text; }

function complain(text) {
  by("error").textContent = text;
  by("error").hidden = !text;
}

async function ask(path, body) {
  const answer = await fetch(path, { method: "POST", body });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the server answered ${answer.status}`);
  return answer;
}

const reason = (error) => error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message;

async function open(chosen, name, what = name) {
  if (busy) return complain(`${name} was not opened, because another picture is being opened or filled. Open it afterwards.`);
  complain("");
  if (chosen.size > MOST_BYTES) {
    return complain(`${what} has more than ${MOST_BYTES / 1e6} MB, the most that this page takes. Fill the saved file with launch/inpaint.py.`);
  }
  const said = by("state").textContent;
  let opened = null;
  busy = true;
  say(`Opening ${name} …`);
  draw();
  try {
    const answer = await ask("upright", chosen);  // browsers do not agree with the server, nor with each other, on how a file is turned
    opened = { ...JSON.parse(answer.headers.get("X-Picture")), image: await createImageBitmap(await answer.blob()) };
  } catch (error) {
    complain(reason(error).replace(/^the picture(?=: )/, () => name));
  }
  busy = false;
  say(said);
  if (!opened) return draw();
  [file, picture, strokes, current, cursor] = [Object.assign(chosen, { shownName: name }), opened, [], null, null];
  forget();
  const side = Math.max(picture.width, picture.height), scale = Math.min(LONG, Math.max(SHORT, side)) / side;
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.hidden = false;
  by("empty").hidden = true;
  say(`${name}, ${picture.width} x ${picture.height}: paint over what is to be filled.`);
  draw();
}

function forget() {  // the filling of strokes that have changed
  result = null;
  before = false;
  if (resultUrl) URL.revokeObjectURL(resultUrl);
  resultUrl = "";
}

function trace(target, stroke) {
  if (!stroke.radius) {
    const [[x0, y0], [x1, y1]] = stroke.points;
    return target.fillRect(x0, y0, x1 - x0, y1 - y0);
  }
  target.lineWidth = 2 * stroke.radius;
  target.beginPath();
  stroke.points.forEach(([x, y], place) => place ? target.lineTo(x, y) : target.moveTo(x, y));
  if (stroke.points.length === 1) target.lineTo(...stroke.points[0]);
  target.stroke();
}

function draw() {
  const shown = current ? [...strokes, current] : strokes;
  by("undo").disabled = by("clear").disabled = busy || !strokes.length;
  by("fill").disabled = busy || !strokes.length || Boolean(result);
  for (const id of ["before", "save", "go-on"]) by(id).hidden = !result;
  for (const id of ["file", "size", "brush", "rectangle"]) by(id).disabled = busy;
  by("before").setAttribute("aria-pressed", before);
  by("progress").hidden = !busy;
  canvas.setAttribute("aria-busy", busy);
  if (!picture) return;
  canvas.setAttribute("aria-label", result && !before ? "The filled picture" : `The picture with ${strokes.length} strokes painted on it`);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(result && !before ? result : picture.image, 0, 0, canvas.width, canvas.height);
  if (!result && shown.length) {
    const layer = new OffscreenCanvas(canvas.width, canvas.height), ink = layer.getContext("2d");
    ink.scale(canvas.width / picture.width, canvas.height / picture.height);
    ink.strokeStyle = ink.fillStyle = INK;
    ink.lineCap = ink.lineJoin = "round";
    shown.forEach((stroke) => trace(ink, stroke));
    context.globalAlpha = 0.62;
    context.drawImage(layer, 0, 0);
    context.globalAlpha = 1;
  }
  if (cursor && !result && document.activeElement === canvas) {
    const scale = canvas.width / picture.width;
    context.lineWidth = 2;
    for (const [colour, wider] of [["#000", 1], ["#fff", -1]]) {
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(cursor[0] * scale, cursor[1] * scale, Math.max(4, brushRadius() * scale) + wider, 0, 7);
      context.stroke();
    }
  }
}

function begin(point) {
  if (result) forget();
  current = isRectangle() ? { radius: 0, points: [point, point] } : { radius: brushRadius(), points: [point] };
  draw();
}

function extend(point) {
  if (current.radius) current.points.push(point);
  else current.points[1] = point;
}

function end(keep) {
  if (current && keep) strokes.push(current);
  current = null;
  draw();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * picture.width) / box.width, ((event.clientY - box.top) * picture.height) / box.height];
}

canvas.addEventListener("pointerdown", (event) => {
  if (busy || current || !event.isPrimary || event.button) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  cursor = null;
  begin(place(event));
});
canvas.addEventListener("pointermove", (event) => {
  if (!current || !event.isPrimary || cursor) return;
  const events = event.getCoalescedEvents?.() ?? [];
  (events.length ? events : [event]).forEach((each) => extend(place(each)));
  draw();
});
canvas.addEventListener("pointerup", (event) => { if (event.isPrimary && !cursor) end(true); });
canvas.addEventListener("pointercancel", (event) => { if (event.isPrimary && !cursor) end(false); });
canvas.addEventListener("blur", () => { if (cursor) end(true); });
canvas.addEventListener("focus", draw);

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (!picture || busy || event.altKey) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") undo();
  else if (event.ctrlKey || event.metaKey) return;
  else if (event.key === "Enter") by("fill").click();
  else if (event.key === "Escape") end(false);
  else if (event.key === " ") {
    cursor ??= [picture.width / 2, picture.height / 2];
    if (current) end(true); else begin(cursor);
  } else if (STEPS[event.key]) {
    const step = (Math.max(picture.width, picture.height) / 200) * (event.shiftKey ? 8 : 1);
    cursor ??= [picture.width / 2, picture.height / 2];
    cursor = [
      Math.min(picture.width, Math.max(0, cursor[0] + STEPS[event.key][0] * step)),
      Math.min(picture.height, Math.max(0, cursor[1] + STEPS[event.key][1] * step)),
    ];
    if (current) extend(cursor);
    draw();
  } else return;
  event.preventDefault();
});

function undo() {
  if (busy || !strokes.length) return;
  forget();
  strokes.pop();
  draw();
}

async function fill() {
  if (busy || result || !strokes.length) return;
  const began = performance.now();
  busy = true;
  complain("");
  say("Filling …");
  draw();
  const timer = setInterval(() => say(`Filling … ${Math.round((performance.now() - began) / 1000)} s`), 1000);
  try {
    const line = JSON.stringify({ width: picture.width, height: picture.height, strokes });
    const answer = await ask("fill", new Blob([line, "\n", file]));
    const blob = await answer.blob();
    result = await createImageBitmap(blob);
    result.blob = blob;
    resultUrl = URL.createObjectURL(blob);
    by("save").href = resultUrl;
    by("save").download = `${file.shownName.replace(/\.[^.]*$/, "")}.inpainted.png`;
    const facts = JSON.parse(answer.headers.get("X-Filled"));
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const blind = facts.blind ? " The network saw nothing around a hole, and painted without context: leave more of the picture." : "";
    say(`${facts.pixels.toLocaleString("en")} pixels filled in ${seconds} s by step ${facts.step}.${blind}`);
  } catch (error) {
    forget();
    say("");
    complain(reason(error));
  } finally {
    clearInterval(timer);
    busy = false;
    draw();
  }
}

by("file").addEventListener("change", () => {
  const chosen = by("file").files[0];
  if (chosen) open(chosen, chosen.name);
  by("file").value = "";
});
by("undo").addEventListener("click", undo);
by("clear").addEventListener("click", () => { forget(); strokes = []; draw(); });
by("fill").addEventListener("click", fill);
by("size").addEventListener("input", draw);
by("before").addEventListener("click", () => { before = !before; draw(); });
by("go-on").addEventListener("click", () => open(result.blob, file.shownName, "The filled picture, a PNG,"));
const stage = by("stage");
stage.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
stage.addEventListener("dragleave", () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  const dropped = event.dataTransfer.files[0];
  if (dropped) open(dropped, dropped.name);
});
