// The chosen photographs, and what each will cost: the server's own arithmetic (its cost in a job
// is the truth) with what GET /models says, so that nothing is uploaded in vain.

const list = document.getElementById("choices");
const template = document.getElementById("choice-template");
const choices = [];

// As the server rounds: a half goes to the even neighbour.
function round(value) {
  const up = Math.round(value);
  return up - value === 0.5 && up % 2 ? up - 1 : up;
}

const sides = ([width, height]) => `${width} × ${height}`;
const area = ([width, height]) => width * height;
const megapixels = (pixels) => `${Number((pixels / 1e6).toPrecision(3))} megapixels`;

// Of a photograph of these sides, px: its result, canvas, tiles in each step; or a fault, in words.
export function costOf(photograph, fields, catalogue) {
  const model = catalogue.models.find((one) => one.name === fields.preset);
  const [width, height] = photograph;
  let scale = Number(fields.scale || 4);
  if (fields.width) scale = fields.width / width;
  if (fields.height) scale = fields.height / height;
  if (fields.megapixels) scale = Math.sqrt((fields.megapixels * 1e6) / (width * height));
  const enlarge = (by) => photograph.map((side) => round(by * side));
  const result = enlarge(scale);
  const canvas = enlarge(Math.max(scale, model.min_canvas_side / Math.min(width, height)));
  const step = model.native * (1 - (fields.tile_overlap || catalogue.tile_overlap) / model.tile_size);
  const along = (side) => Math.max(1, Math.ceil((side - model.native) / step) + 1);
  const cost = { result, canvas, tiles: along(canvas[0]) * along(canvas[1]), least: model.min_canvas_side };
  const over = (pixels, limit) => pixels > limit && `${megapixels(pixels)}; ${megapixels(limit)} are possible`;
  let reason = "";
  if (scale < 1 || scale > model.scale_max) {
    cost.fault = `would be ${Number(scale.toPrecision(3))} times as large; 1 to ${model.scale_max} times are possible`;
  } else if ((reason = over(area(photograph), catalogue.max_input_pixels))) {
    cost.fault = `has ${reason}`;
  } else if ((reason = over(area(result), catalogue.max_output_pixels))) {
    cost.fault = `would become ${sides(result)} = ${reason}`;
  } else if ((reason = over(area(canvas), catalogue.max_canvas_pixels))) {
    cost.fault = `would be computed at ${sides(canvas)} = ${reason}`;
  }
  return cost;
}

export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

class Choice {
  constructor(file, onChange) {
    this.file = file;
    this.name = file.name || "pasted picture";
    this.element = template.content.firstElementChild.cloneNode(true);
    this.part(".name").textContent = `${this.name}, ${size(file.size)}`;
    this.part("button").setAttribute("aria-label", `Remove ${this.name}`);
    this.part("button").addEventListener("click", () => {
      this.remove();
      onChange();
      document.getElementById("files").focus();
    });
    const image = new Image();
    image.alt = "";
    image.src = URL.createObjectURL(file);
    image.onload = image.onerror = () => {
      URL.revokeObjectURL(image.src);
      this.sides = image.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null;
      this.part(".thumb").append(this.sides ? image : this.name.match(/[^.]{0,5}$/)[0]);
      onChange();
    };
    choices.push(this);
    list.append(this.element);
  }

  part(name) {
    return this.element.querySelector(name);
  }

  remove() {
    choices.splice(choices.indexOf(this), 1);
    this.element.remove();
  }

  refuse(sentence) {
    this.say(sentence, true);
    this.element.scrollIntoView({ block: "nearest" });
  }

  say(sentence, isFault) {
    // A screen reader hears what is new only.
    if (this.part(".cost").textContent !== sentence) this.part(".cost").textContent = sentence;
    this.part(".cost").classList.toggle("error", isFault);
  }

  // Whether it can be sent; says what it costs, or why not.
  judge(fields, catalogue) {
    if (this.file.size > catalogue.max_upload_bytes) {
      this.say(`It has ${size(this.file.size)}; ${size(catalogue.max_upload_bytes)} are possible.`, true);
    } else if (!this.sides) {
      const unseen = "This browser cannot show it; the service can read it all the same, if it is a photograph.";
      this.say(this.sides === null ? unseen : "", false);
      return true;
    } else {
      const { result, canvas, tiles, least, fault } = costOf(this.sides, fields, catalogue);
      const steps = Number(fields.steps) || catalogue.models.find((one) => one.name === fields.preset).steps;
      const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
      const computed = String(canvas) === String(result)
        ? "" : `, computed at ${sides(canvas)} (${least} a side at least)`;
      const work = `${count(tiles, "tile")}, ${count(steps, "step")}`;
      const cost = `${sides(this.sides)} → ${sides(result)}${computed}: ${work}`;
      this.say(fault ? `It ${fault}.` : cost, Boolean(fault));
      return !fault;
    }
    return false;
  }
}

export function choose(files, onChange) {
  for (const file of files) new Choice(file, onChange);
  onChange();
}

// Those that can be sent; each says what it costs with these settings.
export function judge(fields, catalogue) {
  return choices.filter((choice) => choice.judge(fields, catalogue));
}
