//! HTTP/1.1 by hand, as far as a receiver needs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use http::{HeaderMap, HeaderName, HeaderValue};

const HEAD_LIMIT: u64 = 64 * 1024;

/// A request line and its headers.
pub struct Head {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
}

/// Writes a response whole; false where the other side has gone.
pub fn write_response(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
    method: &str,
) -> bool {
    let mut bytes = format!("HTTP/1.1 {status} {status}\r\ncontent-length: {}\r\n", body.len()).into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    if method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    stream.write_all(&bytes).is_ok()
}

/// Reads the next request's head; `None` at the end of the connection, or where it is no HTTP.
pub fn read_head(reader: &mut BufReader<&TcpStream>) -> Option<Head> {
    let mut limited = reader.take(HEAD_LIMIT);
    let mut line = String::new();
    let mut next = |line: &mut String| {
        line.clear();
        (limited.read_line(line).ok()? > 0 && line.ends_with('\n')).then_some(())?;
        line.truncate(line.trim_end_matches(['\r', '\n']).len());
        Some(())
    };
    next(&mut line)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HeaderMap::new();
    loop {
        next(&mut line)?;
        if line.is_empty() {
            return Some(Head { method, path, headers });
        }
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(value.trim().as_bytes()).ok()?);
    }
}

/// Reads the body that the head announces; `None` where it ends early.
pub fn read_body(reader: &mut BufReader<&TcpStream>, length: &str, encoding: &str) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if encoding.eq_ignore_ascii_case("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim(), 16).ok()?;
            reader.take(size).read_to_end(&mut body).ok()?;
            reader.read_line(&mut line).ok()?;
            if size == 0 {
                return Some(body);
            }
        }
    }
    let length: u64 = if length.is_empty() { 0 } else { length.parse().ok()? };
    let read = reader.take(length).read_to_end(&mut body).ok()?;
    (read as u64 == length).then_some(body)
}
