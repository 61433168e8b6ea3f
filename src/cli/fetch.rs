//! One HTTP request to a service on this machine, such as a gateway's admin port: HTTP/1.0 over a plain socket, bounded in time and size.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST: u64 = 4 << 20;

/// Fetches `path` from `address` (`host:port`) and returns status and body.
pub async fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    exchange(address, format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await
}

/// Posts a JSON document to `path` at `address`.
#[cfg(feature = "demo")]
pub async fn post_json(address: &str, path: &str, body: &str) -> Result<(u16, String), String> {
    let length = body.len();
    exchange(
        address,
        format!(
            "POST {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        ),
    )
    .await
}

async fn exchange(address: &str, request: String) -> Result<(u16, String), String> {
    let exchange = async {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(LONGEST).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
        .map_err(|error| error.to_string())?;
    parse(&answer).ok_or_else(|| "what answers there does not speak HTTP".to_owned())
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_read_and_rubbish_is_not() {
        assert_eq!(parse(b"HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nno\n"), Some((503, "no\n".to_owned())));
        for rubbish in [&b""[..], b"SSH-2.0-OpenSSH", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
            assert_eq!(parse(rubbish), None);
        }
    }
}
