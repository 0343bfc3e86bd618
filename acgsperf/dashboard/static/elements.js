// Makes and updates elements. Text is always set as text, so that no name can be read as HTML.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function setText(node, text) {
  // An unchanged text is not set again, so that a reader's selection stays.
  if (node.textContent !== text) node.textContent = text;
}
