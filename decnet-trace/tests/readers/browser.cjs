// Opens a flamegraph and a speedscope file in a headless browser, uses them as a person would, and
// prints as JSON what is then to be seen.
//
// Arguments: browser, flamegraph, speedscope file, speedscope's dist/release, folder for pictures.
// Modules (puppeteer-core) are found through NODE_PATH.
"use strict";
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const puppeteer = require("puppeteer-core");

const [browserPath, svg, speedscope, release, pictures] = process.argv.slice(2);

async function flamegraph(page) {
  const seen = { errors: [] };
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  await page.goto("file://" + svg);
  const text = (id) =>
    page.$eval("#" + id, (element) =>
      element.classList.contains("hide") ? "" : element.textContent.trim());
  const titles = () =>
    page.$$eval("#frames > g", (frames) => frames
      .filter((frame) => !frame.classList.contains("hide"))
      .map((frame) => frame.querySelector("title").textContent));
  seen.heading = await page.$$eval("text", (texts) => texts.slice(0, 2).map((t) => t.textContent));
  seen.titles = await titles();
  // Search, as Ctrl-F or the button does it: by the dialog that the script opens.
  page.once("dialog", (dialog) => dialog.accept("fib"));
  await page.$eval("#search", (button) => button.dispatchEvent(new MouseEvent("click", { bubbles: true })));
  seen.matched = await text("matched");
  seen.highlighted = await page.$$eval("#frames > g > rect[fill='rgb(230,0,230)']", (found) =>
    found.map((rect) => rect.parentElement.querySelector("title").textContent));
  await page.screenshot({ path: path.join(pictures, "flamegraph-search.png") });
  // Zoom, by a click on a frame; and back.
  const click = (start) =>
    page.$$eval("#frames > g", (frames, start) => {
      const frame = frames.find((frame) => frame.querySelector("title").textContent.startsWith(start));
      frame.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    }, start);
  await click("handler (/srv/app/main.py:13)");
  seen.zoomed = await titles();
  seen.reset = await text("unzoom");
  await page.screenshot({ path: path.join(pictures, "flamegraph-zoom.png") });
  await page.$eval("#unzoom", (button) => button.dispatchEvent(new MouseEvent("click", { bubbles: true })));
  seen.unzoomed = (await titles()).length;
  return seen;
}

async function speedscopeApp(page) {
  const server = http.createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const file = name === "/profile.json" ? speedscope : path.join(release, path.normalize(name));
    const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };
    fs.readFile(file, (error, data) => {
      response.writeHead(error ? 404 : 200, {
        "content-type": types[path.extname(file)] ?? "application/octet-stream",
      });
      response.end(data);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const base = `http://127.0.0.1:${server.address().port}`;
  const seen = { errors: [], log: [] };
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("console", (message) => seen.log.push(message.text()));
  page.on("dialog", (dialog) => { seen.errors.push(dialog.message()); dialog.dismiss(); });
  await page.goto(`${base}/index.html#profileURL=${encodeURIComponent(base + "/profile.json")}`);
  await page.waitForFunction(() => document.body.innerText.includes("Sandwich"), { timeout: 30000 });
  await new Promise((resolve) => setTimeout(resolve, 1000));
  seen.first = await page.evaluate(() => document.body.innerText);
  await page.screenshot({ path: path.join(pictures, "speedscope.png") });
  // The next of its profiles, then the table of functions.
  await page.keyboard.press("n");
  await new Promise((resolve) => setTimeout(resolve, 500));
  seen.second = await page.evaluate(() => document.body.innerText);
  await page.keyboard.press("3");
  await new Promise((resolve) => setTimeout(resolve, 500));
  seen.table = await page.evaluate(() => document.body.innerText);
  await page.screenshot({ path: path.join(pictures, "speedscope-sandwich.png") });
  server.close();
  return seen;
}

(async () => {
  const browser = await puppeteer.launch({
    executablePath: browserPath,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader",
      "--enable-unsafe-swiftshader", "--window-size=1280,800"],
  });
  try {
    const seen = {
      flamegraph: await flamegraph(await browser.newPage()),
      speedscope: await speedscopeApp(await browser.newPage()),
    };
    console.log(JSON.stringify(seen));
  } finally {
    await browser.close();
  }
})().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
