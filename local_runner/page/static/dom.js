// Elements without HTML: every text, a model's included, becomes a text node.

export const byId = (id) => document.getElementById(id);

// An element; `on...` attributes are listeners, false and null leave an attribute out, children may be texts.
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function fill(parent, ...children) {
  parent.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

// Pairs [term, value] as a description list.
export function facts(list, pairs) {
  fill(list, ...pairs.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, String(value)))));
}

// A bar of `share` (0 to 1) behind a label and a number; the number is what a screen reader reads.
export function bar(label, share, shown) {
  const made = el("div", { class: "bar" }, el("span", { class: "bar-label" }, label), el("span", { class: "bar-value" }, shown));
  made.style.setProperty("--share", `${Math.max(0, Math.min(1, share)) * 100}%`); // CSSOM: the policy bars style attributes
  return made;
}

// Offsets of the server count code points, JavaScript's count UTF-16 units.
export function slicer(text) {
  const points = Array.from(text);
  return (start, end) => points.slice(start, end).join("");
}
