// Loads Mermaid on pages that have a diagram, from the copy in this folder, dist/mermaid.tiny.js of @mermaid-js/tiny 12.0.0
// (MIT, see mermaid.LICENSE).  The theme calls `mermaid.initialize` and `mermaid.render` for each diagram; if there were no
// `mermaid`, it would load one from an outside host.
const copy = new URL("mermaid.tiny.js", document.currentScript.src)
let configuration
let loaded

window.mermaid = {
  initialize(given) {
    configuration = given
  },
  render(...diagram) {
    loaded ??= new Promise((resolve, reject) => {
      const script = document.createElement("script")
      script.src = copy
      // The copy puts itself in the place of this object.
      script.onload = () => {
        window.mermaid.initialize(configuration)
        resolve(window.mermaid)
      }
      script.onerror = () => reject(new Error(`cannot load ${copy}`))
      document.head.append(script)
    })
    return loaded.then((mermaid) => mermaid.render(...diagram))
  },
}
