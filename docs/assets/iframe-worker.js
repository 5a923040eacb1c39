// Browsers start no worker from a file: address. This class runs the script of the search in a
// hidden frame instead, so that search works in pages that are opened without a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      const page = this.frame.contentDocument;
      page.open();
      page.write(
        "<!doctype html><script>window.postMessage = (data) => parent.postMessage(data, '*');" +
        "window.importScripts = (...all) => all.forEach((one) => document.write('<script src=\"' + one + '\"><\\/script>'));<\/script>" +
        "<script src=\"" + url + "\"><\/script>"
      );
      page.close();
      this.loaded = new Promise((resolve) => this.frame.addEventListener("load", resolve, { once: true }));
    }
    postMessage(data) {
      this.loaded.then(() => {
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
      });
    }
    terminate() {
      this.frame.remove();
    }
  };
}
