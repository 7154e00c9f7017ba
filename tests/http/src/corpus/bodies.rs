//! Chunks that do not add up, and trailers that say what no trailer may.

use super::{Entry, bad, cut, passes, waits};

fn chunks(body: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

pub(crate) fn all() -> Vec<Entry> {
    let five = &[("POST", "/a", &b"12345"[..])];
    vec![
        passes("chunks", chunks("3\r\n123\r\n2\r\n45\r\n0\r\n\r\n"), five),
        passes("a chunk size with leading zeros", chunks("00005\r\n12345\r\n000\r\n\r\n"), five),
        passes("a chunk size in capitals", chunks("A\r\n1234567890\r\n0\r\n\r\n"), &[("POST", "/a", b"1234567890")]),
        passes("a chunk with an extension", chunks("5;a=b;c=\"d\"\r\n12345\r\n0;e\r\n\r\n"), five),
        passes("a chunk with the end in it", chunks("5\r\n0\r\n\r\n\r\n0\r\n\r\n"), &[("POST", "/a", b"0\r\n\r\n")]),
        passes("trailers that say nothing about the body", chunks("5\r\n12345\r\n0\r\nX-A: b\r\n\r\n"), five),
        cut("a chunk size with a minus", chunks("-5\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size with a plus", chunks("+5\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size with 0x", chunks("0x5\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size that is no number", chunks("g\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size with an underscore", chunks("1_0\r\n1234567890123456\r\n0\r\n\r\n")),
        cut("an empty chunk size", chunks("\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size of an extension alone", chunks(";a=b\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size of 2^64", chunks("10000000000000000\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size of 2^64 + 5", chunks("10000000000000005\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size of 2^64 - 1", chunks("ffffffffffffffff\r\n12345\r\n0\r\n\r\n")),
        waits(
            "a chunk size of 2^32 + 5 in a chunk of 5",
            chunks("100000005\r\n12345\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
        ),
        cut("a space before a chunk size", chunks(" 5\r\n12345\r\n0\r\n\r\n")),
        cut("a space behind a chunk size", chunks("5 \r\n12345\r\n0\r\n\r\n")),
        cut("a tab behind a chunk size", chunks("5\t\r\n12345\r\n0\r\n\r\n")),
        cut("two numbers for a chunk size", chunks("5 5\r\n12345\r\n0\r\n\r\n")),
        cut("a comma in a chunk size", chunks("5,5\r\n12345\r\n0\r\n\r\n")),
        cut("a NUL behind a chunk size", chunks("5\0\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk size that ends in LF", chunks("5\n12345\r\n0\r\n\r\n")),
        cut("a chunk size that ends in CR", chunks("5\r12345\r\n0\r\n\r\n")),
        cut("a chunk size that ends in CR CR LF", chunks("5\r\r\n12345\r\n0\r\n\r\n")),
        cut("an extension that ends in LF", chunks("5;a=b\n12345\r\n0\r\n\r\n")),
        cut("an extension with a CR in it", chunks("5;a=b\rc\r\n12345\r\n0\r\n\r\n")),
        cut("an extension with a NUL in it", chunks("5;a=\0\r\n12345\r\n0\r\n\r\n")),
        cut("an extension of 20 KiB", chunks(&format!("5;{}\r\n12345\r\n0\r\n\r\n", "x".repeat(20 * 1024)))),
        cut("a chunk longer than it says", chunks("4\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk shorter than it says", chunks("6\r\n12345\r\n0\r\n\r\n")),
        cut("a chunk that ends in LF", chunks("5\r\n12345\n0\r\n\r\n")),
        cut("a chunk that ends in nothing", chunks("5\r\n123450\r\n\r\n")),
        cut("a chunk that ends in two bytes of something", chunks("5\r\n12345ab0\r\n\r\n")),
        cut("a last chunk that ends in LF", chunks("5\r\n12345\r\n0\n\r\n")),
        cut("an end in LF", chunks("5\r\n12345\r\n0\r\n\n")),
        cut("an end in CR and something", chunks("5\r\n12345\r\n0\r\n\rX")),
        cut("trailers that end in LF", chunks("5\r\n12345\r\n0\r\nX-A: b\n\r\n")),
        cut("trailers without a colon", chunks("5\r\n12345\r\n0\r\nX-A\r\n\r\n")),
        cut("a trailer with a space before its colon", chunks("5\r\n12345\r\n0\r\nX-A : b\r\n\r\n")),
        cut("a folded trailer", chunks("5\r\n12345\r\n0\r\nX-A: b\r\n c\r\n\r\n")),
        cut("a trailer with a NUL", chunks("5\r\n12345\r\n0\r\nX-A: \0\r\n\r\n")),
        cut("a trailer with a bare CR", chunks("5\r\n12345\r\n0\r\nX-A: b\rc\r\n\r\n")),
        cut("too many trailers", chunks(&format!("5\r\n12345\r\n0\r\n{}\r\n", "X-A: b\r\n".repeat(2000)))),
        cut("a trailer of 70 KiB", chunks(&format!("5\r\n12345\r\n0\r\nX-A: {}\r\n\r\n", "x".repeat(70 * 1024)))),
        bad(
            "chunks without a coding",
            "POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\n\r\n5\r\n12345\r\n0\r\n\r\n"
                .replace("Content-Length: 0", "Content-Length: "),
        ),
        passes(
            "a request in a chunk is a body",
            chunks("26\r\nGET /hidden HTTP/1.1\r\nHost: orders\r\n\r\n\r\n0\r\n\r\n"),
            &[("POST", "/a", b"GET /hidden HTTP/1.1\r\nHost: orders\r\n\r\n")],
        ),
        passes(
            "trailers with framing fields frame nothing",
            format!(
                "{}GET /b HTTP/1.1\r\nHost: orders\r\n\r\n",
                chunks("5\r\n12345\r\n0\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n")
            ),
            &[("POST", "/a", b"12345"), ("GET", "/b", b"")],
        ),
        passes(
            "trailers that name another host",
            chunks("5\r\n12345\r\n0\r\nHost: other\r\nCulvert-Service: other\r\nAuthorization: x\r\n\r\n"),
            five,
        ),
    ]
}
