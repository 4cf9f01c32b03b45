//! The server's page and the report in headless Chromium.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::server::Server;

/// Opens a page; stdout has it as it is after its script has run.
fn chromium(address: &str, options: &[&str]) -> Output {
    let profile = tempfile::tempdir().unwrap();
    Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"])
        // Neither the page nor the browser itself finds a host outside.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(options)
        .arg(address)
        .output()
        .unwrap_or_else(|error| panic!("chromium: {error}; install Debian's package chromium"))
}

/// Returns the page as it is after its script has run.
fn dom(server: &Server, fragment: &str, options: &[&str]) -> String {
    String::from_utf8(chromium(&format!("http://{}/{fragment}", server.address), options).stdout).unwrap()
}

/// A page that shows another in a frame, and writes what it finds there into its own body.
const HARNESS: &str = r#"<!doctype html><meta charset="utf-8">
<iframe style="width:WIDTHpx;height:900px" src="PAGE"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, all = selector => [...page.querySelectorAll(selector)];
  const root = page.documentElement, inside = frame.clientWidth;
  const named = svg => svg.getAttribute("role") === "img"
    && svg.getAttribute("aria-label") && svg.querySelector("title");
  const box = element => element.getBoundingClientRect();
  // Names beside a plot that lie on one another cannot be read.
  const overlap = svg => {
    const names = [...svg.querySelectorAll("text")].map(box).filter(b => b.width > 0);
    const on = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5 * Math.min(a.height, b.height);
    return names.some((a, n) => names.slice(n + 1).some(b => on(a, b)));
  };
  const outside = svg => [...svg.querySelectorAll("text")].map(box)
    .some(b => b.left < box(svg).left - 1 || b.right > box(svg).right + 1);
  document.body.append(JSON.stringify({
    found: {
      overflow: root.scrollWidth > root.clientWidth,
      wide: all("body *").filter(e => !e.closest(".scroll") && !e.closest("svg") && box(e).right > inside + 1).length,
      plots: all("svg").length,
      unnamed: all("svg").filter(svg => !named(svg)).length,
      overlapping: all("svg").filter(overlap).map(svg => svg.getAttribute("aria-label")),
      outside: all("svg").filter(outside).map(svg => svg.getAttribute("aria-label")),
      smallest: Math.min(...all("svg text").map(text => box(text).height)),
      rows: all("table tbody tr").length,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
      colour: frame.contentWindow.getComputedStyle(page.body).color,
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    },
  }));
};
</script>"#;

/// Returns what [`HARNESS`] finds of a page of `lab` in a frame of `width` pixels, and the lines of
/// the browser's console.
fn looked_at(lab: &Lab, page: &str, width: u32, options: &[&str]) -> (Value, Vec<String>) {
    lab.write("harness.html", HARNESS.replace("WIDTH", &width.to_string()).replace("PAGE", page));
    let address = format!("file://{}", lab.path("harness.html").display());
    let more = ["--allow-file-access-from-files", "--enable-logging=stderr", "--window-size=1400,1000"];
    let output = chromium(&address, &[&more[..], options].concat());
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json = dom.split_once("{\"found\":").unwrap_or_else(|| panic!("{page} was not shown: {log}\n{dom:.2000}")).1;
    let json = json.split_once("}</body>").unwrap().0.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&");
    let console = log.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    (serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}")), console)
}

/// 50 cells, light and dark, wide and as narrow as a phone: names, no overflow, nothing in the
/// console, no request.
#[test]
#[ignore = "needs Debian's package chromium; just test-page"]
fn the_report_is_readable() {
    let lab = Lab::new();
    lab.edit("run.toml", "beams = 5", "beams = 10");
    lab.write(
        "grid.toml",
        "run = \"run.toml\"\nseeds = [1, 2]\nbaselines = [\"popularity\"]\n[axes]\n\"loss.temperature\" = [1, 2]\n",
    );
    lab.ok("experiment grid.toml --out out");
    // 50 cells of the two.
    let mut report: Value = serde_json::from_slice(&lab.read("out/experiment.json")).unwrap();
    let cells = report["cells"].as_array().unwrap().clone();
    let cell = |n: usize| {
        let mut cell = cells[n % 2].clone();
        let (kind, temperature) = (["lml", "msl", "bear", "msl_with_a_name_of_some_length"][n % 4], n / 4);
        cell["name"] = format!("kind={kind},temperature={temperature}").into();
        cell["set"] = json!({ "loss.kind": kind, "loss.temperature": temperature });
        let [mean, low, high] = [0.0, -0.01, 0.01].map(|more| 0.2 + 0.003 * n as f64 + more);
        cell["metrics"]["ndcg@10"] = json!({ "mean": mean, "low": low, "high": high });
        cell
    };
    report["cells"] = (0..50).map(cell).collect();
    lab.write("out/experiment.json", report.to_string());
    lab.ok("report out --out fifty.html");
    let mut looks = Vec::new();
    for (width, options) in [(1200, &[][..]), (400, &[]), (400, &["--force-dark-mode"])] {
        let (found, console) = looked_at(&lab, "fifty.html", width, options);
        assert_eq!(console, Vec::<String>::new());
        for (key, none) in [("overflow", json!(false)), ("wide", json!(0)), ("unnamed", json!(0))] {
            assert_eq!(found[key], none, "{key} at {width}: {found}");
        }
        for key in ["requests", "overlapping", "outside"] {
            assert_eq!(found[key], json!([]), "{key} at {width}: {found}");
        }
        // 15 units of a drawing that is at least 640 pixels wide of 900: 10 pixels, in units of
        // 1/64.
        assert!(found["smallest"].as_f64().unwrap() >= 10.0 - 1.0 / 64.0, "{found}");
        // Results, the temperature, targets, learning curves.
        assert_eq!(found["plots"], 4, "{found}");
        assert!(found["rows"].as_u64().unwrap() > 2 * 50, "{found}");
        looks.push((found["colour"].clone(), found["ground"].clone()));
    }
    assert!(looks[1].0 != looks[2].0 && looks[1].1 != looks[2].1, "dark as light: {looks:?}");

    // What is looked for is seen where it is there.
    lab.write(
        "bad.html",
        "<!doctype html><body style='margin:0'><div style='width:900px'>x</div><svg><text x='9' y='20'>abc</text><text \
         x='9' y='20'>abc</text></svg><img src='http://127.0.0.1:9/x.png'><script>console.error('wrong')</script>",
    );
    let (found, console) = looked_at(&lab, "bad.html", 400, &[]);
    assert!(console.iter().any(|line| line.contains("wrong")), "{console:?}");
    assert_eq!((&found["overflow"], &found["unnamed"]), (&json!(true), &json!(1)), "{found}");
    assert!(found["wide"].as_u64().unwrap() > 0 && found["overlapping"] == json!([null]), "{found}");
    assert_eq!(found["requests"], json!(["http://127.0.0.1:9/x.png"]));
}

/// A title that is HTML is shown as text; the list is that of the server, on a phone's width as
/// well.
#[test]
#[ignore = "needs Debian's package chromium; just test-page"]
fn the_page_shows_the_list() {
    let lab = Lab::new();
    lab.write("items.csv", "id,title\n101,Blue Pen 1\nx,\"<img src=q onerror=\"\"document.title='owned'\"\"> & co\"\n");
    let server = Server::ready(&lab, "corpus --baseline cooccurrence --items items.csv");
    let start = dom(&server, "", &[]);
    assert!(start.contains("cooccurrence: 2 items of") && start.contains("Blue Pen 1"), "{start}");
    assert!(start.contains("Add an item to the history."), "{start}");
    for options in [&[][..], &["--window-size=360,640"], &["--force-dark-mode"]] {
        let page = dom(&server, "#item=101", options);
        let row = "<td>1</td><td>&lt;img src=q onerror=\"document.title='owned'\"&gt; &amp; co</td><td>x</td>";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("<title>itemlm</title>") && !page.contains("<img"), "{page}");
        assert!(page.contains("1 items by cooccurrence in "), "{page}");
    }
    let log = server.stop();
    assert!(!log.contains("src=q") && !log.contains("path=/q"), "{log}");
}
