// Removes keys and tags, if the server allows it. The token stays in the field and is stored nowhere.

import { byId, element, setText } from "./elements.js";

export async function prepareInvalidation() {
  const about = await fetch("about").then((response) => response.json());
  if (!about.can_invalidate) return;
  byId("invalidate-cache").replaceChildren(...about.caches.map((name) => element("option", { value: name }, name)));
  byId("invalidate").hidden = false;
  byId("invalidate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    remove().then(
      (text) => setText(byId("invalidate-result"), text),
      () => setText(byId("invalidate-result"), "The service does not answer."),
    );
  });
}

async function remove() {
  const response = await fetch("invalidate", {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${byId("invalidate-token").value}` },
    body: JSON.stringify({
      cache: byId("invalidate-cache").value,
      kind: byId("invalidate-kind").value,
      name: byId("invalidate-name").value,
    }),
  });
  const answer = await response.json();
  if (!response.ok) return `Not removed: ${answer.error}`;
  const states = [["L1", answer.l1], ["L2", answer.l2], ["L3", answer.l3], ["other processes", answer.published]];
  const said = states.filter(([, done]) => done != null).map(([name, done]) => `${name} ${done ? "done" : "failed"}`);
  return `Removed: ${said.join(", ")}.`;
}
