//! The server's page in headless Chromium.

use std::process::Command;

use crate::lab::Lab;
use crate::server::Server;

/// Returns the page as it is after its script has run.
fn dom(server: &Server, fragment: &str, options: &[&str]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(options)
        .arg(format!("http://{}/{fragment}", server.address))
        .output()
        .unwrap_or_else(|error| panic!("chromium: {error}; install Debian's package chromium"));
    String::from_utf8(output.stdout).unwrap()
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
