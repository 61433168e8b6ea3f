//! The cheapest HTTP receiver there can be, for `drain.sh` and `park.sh`: says 200 to every request with a
//! `content-length`, and prints the address that it listens on: any port, or `--listen 127.0.0.1:8080`. With the end of
//! each connection it prints how many requests came over it.
//!
//! With `--verify` it reads the batches before it answers, and prints how many events came, and how many of them out of
//! the order of their keys.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

/// What came, and the highest `order_id` of each key.
#[derive(Default)]
struct Seen {
    highest: HashMap<String, u64>,
    events: u64,
    disorder: u64,
}

impl Seen {
    fn take_in(&mut self, body: &str) {
        for element in body.split("{\"id\":").skip(1) {
            let after = |name: &str| Some(element.split_once(name)?.1);
            let key = after("\"key\":\"").and_then(|rest| rest.split('"').next()).unwrap_or_default();
            let digits = after("\"order_id\": ").map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
            let Some(order) = digits.flatten().and_then(|digits| digits.parse().ok()) else { continue };
            self.events += 1;
            match self.highest.get_mut(key) {
                Some(highest) if *highest >= order => self.disorder += 1,
                Some(highest) => *highest = order,
                None => drop(self.highest.insert(key.to_owned(), order)),
            }
        }
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().skip_while(|argument| argument != "--listen").nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0"))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let verify = std::env::args().any(|argument| argument == "--verify");
    let seen = verify.then(|| Arc::new(Mutex::new(Seen::default())));
    for stream in listener.incoming() {
        let stream = stream?;
        let seen = seen.clone();
        std::thread::spawn(move || {
            let mut requests = 0_u64;
            // A connection that breaks ends its thread, and nothing else.
            let _ = serve(stream, &mut requests, seen.as_deref());
            let mut line = format!("requests {requests}");
            if let Some(seen) = seen {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                line.push_str(&format!("\nverified {} {}", seen.events, seen.disorder));
                *seen = Seen { events: seen.events, disorder: seen.disorder, ..Seen::default() };
            }
            let _ = writeln!(io::stdout(), "{line}");
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream, requests: &mut u64, seen: Option<&Mutex<Seen>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 18];
    let mut filled = 0;
    // Bytes of the present body that are still to come.
    let mut body = 0;
    let mut kept = Vec::new();
    // An answer is owed once the body is there.
    let mut owed = false;
    loop {
        let read = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut at = 0;
        loop {
            let skipped = body.min(filled - at);
            if let Some(seen) = seen {
                kept.extend_from_slice(buffer.get(at..at + skipped).unwrap_or_default());
                if skipped == body && !kept.is_empty() {
                    // The next event of a key comes only after the answer to this one.
                    seen.lock().unwrap_or_else(PoisonError::into_inner).take_in(&String::from_utf8_lossy(&kept));
                    kept.clear();
                }
            }
            (at, body) = (at + skipped, body - skipped);
            if body > 0 {
                break;
            }
            if std::mem::take(&mut owed) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            }
            let rest = buffer.get(at..filled).unwrap_or_default();
            let Some(end) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { break };
            body = length(rest.get(..end).unwrap_or_default());
            at += end + 4;
            *requests += 1;
            owed = true;
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
