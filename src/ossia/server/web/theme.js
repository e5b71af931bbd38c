// Before the first paint, so that a chosen theme does not flash. The page's own code takes over from there.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("ossia.theme")) || "system";
} catch {
  // Blocked storage: the system's theme.
}
