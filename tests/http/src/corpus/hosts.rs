//! Whom a request is for, said oddly or in two ways; what `Connection` may take away; offers to change the protocol.

use super::{Entry, bad, passes, refused};

fn host(host: &str) -> String {
    format!("GET /a HTTP/1.1\r\n{host}\r\n")
}

fn to(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: orders\r\n\r\n")
}

fn with(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: orders\r\n{lines}\r\n")
}

pub(crate) fn all() -> Vec<Entry> {
    let a = &[("GET", "/a", &b""[..])];
    vec![
        // Host.
        bad("no Host", host("X: y\r\n")),
        bad("no Host in HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n"),
        bad("an empty Host", host("Host:\r\n")),
        bad("a Host of spaces", host("Host:  \r\n")),
        bad("two Hosts that differ", host("Host: orders\r\nHost: other\r\n")),
        bad("two Hosts that differ, the other way", host("Host: other\r\nHost: orders\r\n")),
        bad("two Hosts that agree", host("Host: orders\r\nHost: orders\r\n")),
        bad("two Hosts of different case", host("Host: orders\r\nhOST: other\r\n")),
        bad("two Hosts on one line", host("Host: orders, other\r\n")),
        bad("two Hosts with a space", host("Host: orders other\r\n")),
        bad("a Host with a user", host("Host: a@orders\r\n")),
        bad("a Host with a user and password", host("Host: a:b@orders\r\n")),
        bad("a Host with a path", host("Host: orders/x\r\n")),
        bad("a Host with a query", host("Host: orders?x\r\n")),
        bad("a Host with a fragment", host("Host: orders#x\r\n")),
        bad("a Host with a scheme", host("Host: http://orders\r\n")),
        bad("a Host with a backslash", host("Host: orders\\other\r\n")),
        bad("a Host with a semicolon", host("Host: orders;other\r\n")),
        bad("a Host with a percent", host("Host: %6frders\r\n")),
        bad("a Host with a NUL", host("Host: orders\0other\r\n")),
        bad("a Host with a tab inside", host("Host: orders\tother\r\n")),
        bad("a Host in another script", host("Host: \u{43e}rders\r\n")),
        bad("a Host with a port that is no number", host("Host: orders:x\r\n")),
        bad("a Host with a port over 65535", host("Host: orders:65536\r\n")),
        bad("a Host with a negative port", host("Host: orders:-80\r\n")),
        bad("a Host with two ports", host("Host: orders:80:80\r\n")),
        bad("a Host of a port alone", host("Host: :80\r\n")),
        bad("a Host with an open bracket", host("Host: [::1\r\n")),
        bad("a Host with a bracket and more", host("Host: [::1]orders\r\n")),
        bad("a Host with quotes", host("Host: \"orders\"\r\n")),
        bad("a space before the colon of Host", host("Host : orders\r\n")),
        passes("a Host in capitals", host("hOsT: orders\r\n"), a),
        passes("a Host with a port", host("Host: orders:8080\r\n"), a),
        passes("a Host with an empty port", host("Host: orders:\r\n"), a),
        passes("a Host with its domain", host("Host: orders.internal\r\n"), a),
        // Targets.
        bad("absolute-form for another", to("http://other/a")),
        bad("absolute-form for another port", to("http://orders:81/a")),
        bad("absolute-form with a user", to("http://x@orders/a")),
        bad("absolute-form with another in its user", to("http://orders@other/a")),
        bad("absolute-form with a password", to("http://x:y@orders/a")),
        bad("absolute-form without a host", to("http:///a")),
        bad("absolute-form with an empty port and another host", to("http://other:/a")),
        bad("absolute-form with a backslash", to("http://orders\\@other/a")),
        bad("absolute-form of another scheme", to("ftp://orders/a")),
        bad("absolute-form of a file", to("file:///a")),
        bad("absolute-form of a script", to("javascript:alert(1)")),
        bad("absolute-form without Host", "GET http://orders/a HTTP/1.1\r\n\r\n"),
        bad("absolute-form with one slash", to("http:/orders/a")),
        bad("absolute-form with a fragment", to("http://orders/a#b")),
        passes("absolute-form that agrees", to("http://orders/a"), a),
        passes("absolute-form in another case", to("HTTP://ORDERS:80/a"), a),
        bad("authority-form", to("orders:80")),
        bad("authority-form without a port", to("orders")),
        bad("CONNECT", "CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n"),
        bad("CONNECT with a path", "CONNECT /a HTTP/1.1\r\nHost: orders\r\n\r\n"),
        bad("CONNECT to another", "CONNECT other:80 HTTP/1.1\r\nHost: orders\r\n\r\n"),
        bad("* without OPTIONS", to("*")),
        bad("*/a", to("*/a")),
        bad("a relative target", to("a/b")),
        bad("a target of a query", to("?a")),
        bad("a target of a fragment", to("#a")),
        bad("a fragment", to("/a#b")),
        bad("a fragment behind a query", to("/a?b#c")),
        bad("a backslash for a slash", to("\\a")),
        bad("an empty target", "GET  HTTP/1.1\r\nHost: orders\r\n\r\n"),
        passes("OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: orders\r\n\r\n", &[("OPTIONS", "*", b"")]),
        passes("a target that looks like another host", to("//other/a"), &[("GET", "//other/a", b"")]),
        passes("a target that leaves its root", to("/../../other"), &[("GET", "/../../other", b"")]),
        passes("a target with an encoded NUL", to("/a%00%0d%0ab"), &[("GET", "/a%00%0d%0ab", b"")]),
        passes(
            "a target with another URL in it",
            to("/http://other/?x=http://other"),
            &[("GET", "/http://other/?x=http://other", b"")],
        ),
        refused("a service that nobody knows", 404, "GET /a HTTP/1.1\r\nHost: nobody\r\nConnection: close\r\n\r\n"),
        // Connection.
        bad("Connection: host", with("Connection: host\r\n")),
        bad("Connection: close, host", with("Connection: close, Host\r\n")),
        bad(
            "Connection: content-length",
            "POST /a HTTP/1.1\r\nHost: orders\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\n12345",
        ),
        bad(
            "Connection: transfer-encoding",
            "POST /a HTTP/1.1\r\nHost: orders\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        bad("Connection: content-type", with("Connection: content-type\r\nContent-Type: x\r\n")),
        bad("Connection: authorization", with("Connection: authorization\r\nAuthorization: x\r\n")),
        bad("Connection: cookie", with("Connection: cookie\r\nCookie: x\r\n")),
        bad("Connection: x-forwarded-for", with("Connection: X-Forwarded-For\r\n")),
        bad(
            "Connection: x-forwarded-proto on a second line",
            with("Connection: close\r\nConnection: X-Forwarded-Proto\r\n"),
        ),
        bad("Connection: forwarded", with("Connection: forwarded\r\n")),
        bad("Connection: via", with("Connection: via\r\n")),
        bad("Connection: x-real-ip", with("Connection: x-real-ip\r\n")),
        bad("Connection: x-request-id", with("Connection: x-request-id\r\n")),
        bad("Connection: traceparent", with("Connection: traceparent\r\n")),
        bad("Connection: expect", with("Connection: expect\r\n")),
        bad("Connection: trailer", with("Connection: trailer\r\n")),
        bad("Connection: range", with("Connection: range\r\nRange: bytes=0-1\r\n")),
        bad("Connection: culvert-service", with("Connection: culvert-service\r\nCulvert-Service: other\r\n")),
        bad("Connection: culvert-gateway", with("Connection: culvert-gateway\r\n")),
        bad("Connection: culvert-anything", with("Connection: Culvert-Anything\r\n")),
        bad("Connection: a name with a space", with("Connection: a b\r\n")),
        bad("Connection: a name in quotes", with("Connection: \"host\"\r\n")),
        bad("Connection: a name with a colon", with("Connection: host:\r\n")),
        passes("Connection: a name of one's own", with("Connection: x-mine\r\nX-Mine: 1\r\n"), a),
        passes("Connection: nothing", with("Connection: , ,\r\n"), a),
        // Upgrades.
        passes(
            "a WebSocket with a body is no WebSocket",
            "POST /a HTTP/1.1\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\n12345",
            &[("POST", "/a", b"12345")],
        ),
        passes(
            "a WebSocket in chunks is no WebSocket",
            "POST /a HTTP/1.1\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
            &[("POST", "/a", b"12345")],
        ),
        passes(
            "a request behind an offer that is not taken",
            format!("{}GET /b HTTP/1.1\r\nHost: orders\r\n\r\n", with("Upgrade: own\r\nConnection: upgrade\r\n")),
            &[("GET", "/a", b""), ("GET", "/b", b"")],
        ),
        passes(
            "an offer of h2c is no offer",
            with("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            a,
        ),
        passes("an offer of HTTP/2.0 is no offer", with("Upgrade: HTTP/2.0\r\nConnection: Upgrade\r\n"), a),
        passes(
            "an offer of h2c beside WebSocket is no offer",
            with("Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n"),
            a,
        ),
        passes("an offer without Connection is no offer", with("Upgrade: websocket\r\n"), a),
        passes("an offer twice is no offer", with("Upgrade: websocket\r\nUpgrade: x\r\nConnection: Upgrade\r\n"), a),
        passes(
            "an offer in HTTP/1.0 is no offer",
            "GET /a HTTP/1.0\r\nHost: orders\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            a,
        ),
        // Whose fields.
        passes(
            "Culvert's fields",
            with(
                "Culvert-Service: other\r\nCulvert-Gateway: a:b\r\nCulvert-Peer: x\r\nCulvert-Failure: internal; sent=0\r\n",
            ),
            a,
        ),
        passes(
            "X-Forwarded-Host names another",
            with("X-Forwarded-Host: other\r\nX-Original-URL: /b\r\nX-Host: other\r\n"),
            a,
        ),
        passes("X-HTTP-Method-Override", with("X-HTTP-Method-Override: DELETE\r\n"), a),
        passes("Expect without a body", with("Expect: 100-continue\r\n"), a),
    ]
}
