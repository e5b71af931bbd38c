import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const OUT = "../src/ossia/server/web";

/** What the page is built from. A test compares it with built-from.json, so that stale assets are noticed without Node. */
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "public", "src"];

/** The sha256 of each file in `folder` that is one of `names` or lies below it. */
function digests(folder: string, names: readonly string[]): Record<string, string> {
  const files = names.flatMap((name) =>
    statSync(join(folder, name)).isFile()
      ? [name]
      : readdirSync(join(folder, name), { recursive: true, withFileTypes: true })
          .filter((entry) => entry.isFile())
          .map((entry) => relative(folder, join(entry.parentPath, entry.name))),
  );
  return Object.fromEntries(
    files.sort().map((file) => [file, createHash("sha256").update(readFileSync(join(folder, file))).digest("hex")]),
  );
}

function stamp(): Plugin {
  return {
    name: "stamp",
    apply: "build",
    closeBundle() {
      const out = join(import.meta.dirname, OUT);
      const record = { sources: digests(import.meta.dirname, SOURCES), built: digests(out, readdirSync(out)) };
      writeFileSync(join(out, "built-from.json"), `${JSON.stringify(record, null, 2)}\n`);
    },
  };
}

export default defineConfig({
  // The page asks for its parts and its API beside itself, wherever it is mounted.
  base: "./",
  plugins: [stamp()],
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: ["chrome123", "firefox120", "safari17.5"],
    sourcemap: false,
    modulePreload: false,
    license: { fileName: "licenses.md" },
    rolldownOptions: {
      output: {
        entryFileNames: "assets/[name]-[hash].js",
        chunkFileNames: "assets/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
});
