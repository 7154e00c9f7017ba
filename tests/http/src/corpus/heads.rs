//! Lines, names, values, versions, methods and sizes of heads.

use super::{Entry, bad, passes, refused};

fn get(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: orders\r\n{lines}\r\n")
}

fn first(line: &str) -> String {
    format!("{line}\r\nHost: orders\r\n\r\n")
}

pub(crate) fn all() -> Vec<Entry> {
    let a = &[("GET", "/a", &b""[..])];
    let mut all = vec![
        passes("a plain request", get(""), a),
        passes("blank lines before a request", format!("\r\n\r\n{}", get("")), a),
        passes(
            "a value of high bytes",
            [b"GET /a HTTP/1.1\r\nHost: orders\r\nX: ", &(0x80..=0xff).collect::<Vec<u8>>()[..], b"\r\n\r\n"].concat(),
            a,
        ),
        passes("an empty value", get("X:\r\n"), a),
        passes("every mark that a name may have", get("!#$%&'*+-.^_`|~: b\r\n"), a),
        passes("a field that looks like a request", get("X: GET /b HTTP/1.1\r\n"), a),
        // Lines.
        bad("lines that end in LF", "GET /a HTTP/1.1\nHost: orders\n\n"),
        bad("a request line that ends in LF", "GET /a HTTP/1.1\nHost: orders\r\n\r\n"),
        bad("a Host that ends in LF", "GET /a HTTP/1.1\r\nHost: orders\nX: y\r\n\r\n"),
        bad("a head that ends in LF", "GET /a HTTP/1.1\r\nHost: orders\r\n\n"),
        bad("a head that ends in LF LF", "GET /a HTTP/1.1\r\nHost: orders\n\n"),
        bad("a bare LF before the request", format!("\n{}", get(""))),
        bad("a bare CR before the request", format!("\r{}", get(""))),
        bad("a bare CR in a value", get("X: a\rb\r\n")),
        bad("a bare CR at the end of a value", get("X: a\r\r\n")),
        bad("a bare CR in a name", get("X\rY: a\r\n")),
        bad("a bare CR in the request line", "GET /a\rHTTP/1.1\r\nHost: orders\r\n\r\n"),
        bad("lines that end in CR", "GET /a HTTP/1.1\rHost: orders\r\r"),
        bad("a bare LF in a value", get("X: a\nb\r\n")),
        bad("a request hidden behind a bare LF", get("X: a\n\nGET /smuggled HTTP/1.1\r\nHost: other\r\n")),
        bad("a folded value", get("X: a\r\n b\r\n")),
        bad("a value folded by a tab", get("X: a\r\n\tb\r\n")),
        bad("a folded line of spaces", get("X: a\r\n \r\n")),
        bad("a first field that is folded", "GET /a HTTP/1.1\r\n X: y\r\nHost: orders\r\n\r\n"),
        bad("a folded Host", "GET /a HTTP/1.1\r\nHost:\r\n orders\r\n\r\n"),
        // Names.
        bad("a space before the colon", get("X : a\r\n")),
        bad("a tab before the colon", get("X\t: a\r\n")),
        bad("a space in a name", get("X Y: a\r\n")),
        bad("no name", get(": a\r\n")),
        bad("no colon", get("X\r\n")),
        bad("a NUL in a name", get("X\0: a\r\n")),
        bad("a control in a name", get("X\x01Y: a\r\n")),
        bad("a DEL in a name", get("X\x7fY: a\r\n")),
        bad("a high byte in a name", get("X\u{e4}: a\r\n")),
        bad("a bracket in a name", get("X(Y): a\r\n")),
        bad("a comma in a name", get("X,Y: a\r\n")),
        bad("a slash in a name", get("X/Y: a\r\n")),
        bad("an at in a name", get("X@Y: a\r\n")),
        bad("a quote in a name", get("\"X\": a\r\n")),
        bad("braces in a name", get("{X}: a\r\n")),
        bad("a pseudo-header in HTTP/1.1", get(":authority: other\r\n")),
        // Values.
        bad("a NUL in a value", get("X: a\0b\r\n")),
        bad("a control in a value", get("X: a\x01b\r\n")),
        bad("a vertical tab in a value", get("X: a\x0bb\r\n")),
        bad("an escape in a value", get("X: a\x1bb\r\n")),
        bad("a DEL in a value", get("X: a\x7fb\r\n")),
        // Request lines.
        bad("HTTP/0.9", "GET /a\r\n\r\n"),
        bad("HTTP/0.9 with a host", "GET /a\r\nHost: orders\r\n\r\n"),
        bad("HTTP/2.0 on the line", first("GET /a HTTP/2.0")),
        bad("HTTP/1.2 on the line", first("GET /a HTTP/1.2")),
        bad("HTTP/1.10 on the line", first("GET /a HTTP/1.10")),
        bad("HTTP/01.1 on the line", first("GET /a HTTP/01.1")),
        bad("HTTP/1,1 on the line", first("GET /a HTTP/1,1")),
        bad("HTTP/1. on the line", first("GET /a HTTP/1.")),
        bad("http/1.1 in lower case", first("GET /a http/1.1")),
        bad("HTTPS/1.1", first("GET /a HTTPS/1.1")),
        bad("ICY/1.1", first("GET /a ICY/1.1")),
        bad("a version with a space", first("GET /a HTTP/ 1.1")),
        bad("two spaces before the target", first("GET  /a HTTP/1.1")),
        bad("two spaces before the version", first("GET /a  HTTP/1.1")),
        bad("a tab for a space", first("GET\t/a\tHTTP/1.1")),
        bad("a space behind the version", first("GET /a HTTP/1.1 ")),
        bad("a space before the method", first(" GET /a HTTP/1.1")),
        bad("a space in the target", first("GET /a b HTTP/1.1")),
        bad("two versions", first("GET /a HTTP/1.1 HTTP/1.1")),
        bad("no target", first("GET HTTP/1.1")),
        bad("no method", first("/a HTTP/1.1")),
        bad("a method with a space in it", first("GE T /a HTTP/1.1")),
        bad("a method with a NUL", first("GE\0T /a HTTP/1.1")),
        bad("a method with a control", first("GE\x01T /a HTTP/1.1")),
        bad("a method with a colon", first("GET: /a HTTP/1.1")),
        bad("a method with a bracket", first("G(T /a HTTP/1.1")),
        bad("a method of high bytes", first("GET\u{e4} /a HTTP/1.1")),
        passes("a method in lower case is another method", first("get /a HTTP/1.1"), &[("get", "/a", b"")]),
        bad("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\r\n\r\n".to_vec()),
        bad("an SSH greeting", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        bad("an answer for a request", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        // Bounds.
        refused("a target of 70 KiB", 431, first(&format!("GET /{} HTTP/1.1", "x".repeat(70 * 1024)))),
        refused("a value of 70 KiB", 431, get(&format!("X: {}\r\n", "x".repeat(70 * 1024)))),
        refused("a name of 70 KiB", 431, get(&format!("{}: x\r\n", "x".repeat(70 * 1024)))),
        refused("70 KiB of fields", 431, get(&format!("X: {}\r\n", "x".repeat(1000)).repeat(70))),
        refused("101 fields", 431, get(&"X: y\r\n".repeat(100))),
        refused("10,000 fields", 431, get(&"X: y\r\n".repeat(10_000))),
    ];
    for (at, byte) in [0x00, 0x08, 0x0b, 0x0c, 0x1f, 0x7f].into_iter().enumerate() {
        const NAMES: [&str; 6] = [
            "a NUL in the target",
            "a backspace in the target",
            "a vertical tab in the target",
            "a form feed in the target",
            "a unit separator in the target",
            "a DEL in the target",
        ];
        let line = [b"GET /a", &[byte][..], b"b HTTP/1.1\r\nHost: orders\r\n\r\n"].concat();
        all.push(bad(NAMES[at], line));
    }
    all
}
