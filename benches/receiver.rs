//! The cheapest HTTP receiver there can be, for `drain.sh`: says 200 to every request with a `content-length`, and
//! prints the address that it listens on. With the end of each connection it prints how many requests came over it.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            let mut requests = 0_u64;
            // A connection that breaks ends its thread, and nothing else.
            let _ = serve(stream, &mut requests);
            let _ = writeln!(io::stdout(), "requests {requests}");
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream, requests: &mut u64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 18];
    let mut filled = 0;
    // Bytes of the present body that are still to come.
    let mut body = 0;
    loop {
        let read = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut at = 0;
        loop {
            let skipped = body.min(filled - at);
            (at, body) = (at + skipped, body - skipped);
            let rest = buffer.get(at..filled).unwrap_or_default();
            let Some(end) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { break };
            body = length(rest.get(..end).unwrap_or_default());
            at += end + 4;
            *requests += 1;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

fn length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    head.lines().find_map(value).unwrap_or(0)
}
