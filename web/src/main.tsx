import { render } from "preact";
import "./style/tokens.css";
import "./style/base.css";
import "./style/layout.css";
import "./style/thread.css";
import "./style/prose.css";
import "./style/composer.css";
import "./style/panels.css";
import { loadModels, openAddressed, openStore, outage, saveAll } from "./state/app";
import { App } from "./ui/app";

render(<App />, document.body);
void openStore();
void loadModels();

addEventListener("popstate", openAddressed);
addEventListener("pagehide", saveAll);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) saveAll();
});
addEventListener("online", () => {
  if (outage.value) void loadModels();
});
