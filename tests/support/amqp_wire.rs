//! AMQP 0-9-1 by hand: so that what walgate's client library stored is not read with the same library.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A connection with one channel.
pub struct Wire {
    socket: TcpStream,
}

/// A message as a queue held it.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub exchange: String,
    pub routing_key: String,
    pub content_type: Option<String>,
    pub headers: Vec<(String, String)>,
    pub delivery_mode: Option<u8>,
    pub message_id: Option<String>,
    pub timestamp: Option<u64>,
    pub kind: Option<String>,
    pub app_id: Option<String>,
    pub data: Vec<u8>,
}

impl Stored {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.message_id.as_deref().expect("a message id")
    }

    /// SHA-256 of the payload, in hex.
    pub fn hash(&self) -> String {
        Sha256::digest(&self.data).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An argument of a declaration.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    Text(&'a str),
    Number(i64),
}

/// Reads one frame's body from its beginning.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn short(&mut self) -> String {
        let length = self.number(1) as usize;
        String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
    }

    fn long(&mut self) -> Vec<u8> {
        let length = self.number(4) as usize;
        self.take(length).to_vec()
    }

    /// A table whose values are texts; others by their type.
    fn table(&mut self) -> Vec<(String, String)> {
        let bytes = self.long();
        let mut cursor = Cursor(&bytes);
        let mut table = Vec::new();
        while !cursor.0.is_empty() {
            let name = cursor.short();
            let value = match cursor.number(1) as u8 {
                b'S' => String::from_utf8(cursor.long()).expect("UTF-8"),
                b'l' | b'T' => cursor.number(8).to_string(),
                b'I' => cursor.number(4).to_string(),
                b't' => cursor.number(1).to_string(),
                b'F' => format!("{:?}", cursor.table()),
                other => panic!("a value of type {:?} in a table", char::from(other)),
            };
            table.push((name, value));
        }
        table
    }
}

/// Size of the body that follows, and the message with its properties.
pub fn content_header(header: &[u8]) -> (usize, Stored) {
    let mut message = Stored::default();
    let mut cursor = Cursor(header);
    cursor.take(4);
    let size = cursor.number(8) as usize;
    let flags = cursor.number(2);
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            15 => message.content_type = Some(cursor.short()),
            13 => message.headers = cursor.table(),
            12 => message.delivery_mode = Some(cursor.number(1) as u8),
            11 => drop(cursor.number(1)),
            7 => message.message_id = Some(cursor.short()),
            6 => message.timestamp = Some(cursor.number(8)),
            5 => message.kind = Some(cursor.short()),
            3 => message.app_id = Some(cursor.short()),
            _ => drop(cursor.short()),
        }
    }
    (size, message)
}

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("a short string"));
    out.extend_from_slice(text.as_bytes());
}

fn long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn table(out: &mut Vec<u8>, arguments: &[(&str, Argument<'_>)]) {
    let mut body = Vec::new();
    for (name, value) in arguments {
        short(&mut body, name);
        match value {
            Argument::Text(text) => {
                body.push(b'S');
                long(&mut body, text.as_bytes());
            }
            Argument::Number(number) => {
                body.push(b'l');
                body.extend_from_slice(&number.to_be_bytes());
            }
        }
    }
    long(out, &body);
}

impl Wire {
    /// As user `walgate` with password `secret`.
    #[track_caller]
    pub fn connect(port: u16, vhost: &str) -> Wire {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection to RabbitMQ");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a read timeout");
        socket.write_all(b"AMQP\x00\x00\x09\x01").expect("the header");
        let mut wire = Wire { socket };
        wire.method(10, 10);
        let mut start = Vec::new();
        table(&mut start, &[]);
        short(&mut start, "PLAIN");
        long(&mut start, b"\0walgate\0secret");
        short(&mut start, "en_US");
        wire.send(0, 10, 11, &start);
        wire.method(10, 30);
        // 16 channels, frames of 128 KiB, no heartbeat.
        wire.send(0, 10, 31, &[0, 16, 0, 2, 0, 0, 0, 0]);
        let mut open = Vec::new();
        short(&mut open, vhost);
        short(&mut open, "");
        open.push(0);
        wire.send(0, 10, 40, &open);
        wire.method(10, 41);
        wire.send(1, 20, 10, &[0]);
        wire.method(20, 11);
        wire
    }

    fn send(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let mut frame = vec![1];
        frame.extend_from_slice(&channel.to_be_bytes());
        frame.extend_from_slice(&(arguments.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(&class.to_be_bytes());
        frame.extend_from_slice(&method.to_be_bytes());
        frame.extend_from_slice(arguments);
        frame.push(0xce);
        self.socket.write_all(&frame).expect("writing to RabbitMQ");
    }

    /// Kind and body of the next frame that is no heartbeat.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 7];
            self.socket.read_exact(&mut head).expect("a frame of RabbitMQ");
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut body = vec![0; size + 1];
            self.socket.read_exact(&mut body).expect("a frame of RabbitMQ");
            assert_eq!(body.pop(), Some(0xce), "the end of a frame");
            if head[0] != 8 {
                return (head[0], body);
            }
        }
    }

    /// The arguments of this method, which comes next.
    #[track_caller]
    fn method(&mut self, class: u64, method: u64) -> Vec<u8> {
        let (found, arguments) = self.any_method();
        assert_eq!(found, (class, method), "{}", String::from_utf8_lossy(&arguments));
        arguments
    }

    fn any_method(&mut self) -> ((u64, u64), Vec<u8>) {
        let (kind, body) = self.frame();
        assert_eq!(kind, 1, "a method");
        let mut cursor = Cursor(&body);
        let found = (cursor.number(2), cursor.number(2));
        (found, cursor.0.to_vec())
    }

    /// A durable exchange.
    #[track_caller]
    pub fn declare_exchange(&mut self, name: &str, kind: &str) {
        let mut arguments = vec![0, 0];
        short(&mut arguments, name);
        short(&mut arguments, kind);
        arguments.push(2);
        table(&mut arguments, &[]);
        self.send(1, 40, 10, &arguments);
        self.method(40, 11);
    }

    #[track_caller]
    pub fn delete_exchange(&mut self, name: &str) {
        let mut arguments = vec![0, 0];
        short(&mut arguments, name);
        arguments.push(0);
        self.send(1, 40, 20, &arguments);
        self.method(40, 21);
    }

    /// A durable queue.
    #[track_caller]
    pub fn declare_queue(&mut self, name: &str, arguments: &[(&str, Argument<'_>)]) {
        let mut out = vec![0, 0];
        short(&mut out, name);
        out.push(2);
        table(&mut out, arguments);
        self.send(1, 50, 10, &out);
        self.method(50, 11);
    }

    #[track_caller]
    pub fn delete_queue(&mut self, name: &str) {
        let mut arguments = vec![0, 0];
        short(&mut arguments, name);
        arguments.push(0);
        self.send(1, 50, 40, &arguments);
        self.method(50, 41);
    }

    #[track_caller]
    pub fn bind(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        let mut arguments = vec![0, 0];
        for text in [queue, exchange, routing_key] {
            short(&mut arguments, text);
        }
        arguments.push(0);
        table(&mut arguments, &[]);
        self.send(1, 50, 20, &arguments);
        self.method(50, 21);
    }

    #[track_caller]
    pub fn unbind(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        let mut arguments = vec![0, 0];
        for text in [queue, exchange, routing_key] {
            short(&mut arguments, text);
        }
        table(&mut arguments, &[]);
        self.send(1, 50, 50, &arguments);
        self.method(50, 51);
    }

    /// Messages in a queue that nobody has taken.
    #[track_caller]
    pub fn count(&mut self, queue: &str) -> u64 {
        let mut arguments = vec![0, 0];
        short(&mut arguments, queue);
        arguments.push(1);
        table(&mut arguments, &[]);
        self.send(1, 50, 10, &arguments);
        let answer = self.method(50, 11);
        let mut cursor = Cursor(&answer);
        cursor.short();
        cursor.number(4)
    }

    /// Takes everything out of a queue, in its order, whoever fills it.
    #[track_caller]
    pub fn take_all(&mut self, queue: &str) -> Vec<Stored> {
        let mut taken = Vec::new();
        while let Some(message) = self.take(queue) {
            taken.push(message);
        }
        taken
    }

    /// The same, as a consumer and so much faster, for a queue that nobody fills any more.
    #[track_caller]
    pub fn drain(&mut self, queue: &str) -> Vec<Stored> {
        let count = self.count(queue);
        let mut arguments = vec![0, 0];
        short(&mut arguments, queue);
        short(&mut arguments, "drain");
        // No acknowledgement is asked for.
        arguments.push(2);
        table(&mut arguments, &[]);
        self.send(1, 60, 20, &arguments);
        self.method(60, 21);
        let delivered = (0..count).map(|_| {
            let delivery = self.method(60, 60);
            let mut cursor = Cursor(&delivery);
            cursor.short();
            cursor.take(9);
            self.content(&mut cursor)
        });
        let mut taken: Vec<Stored> = delivered.collect();
        let mut arguments = Vec::new();
        short(&mut arguments, "drain");
        arguments.push(0);
        self.send(1, 60, 30, &arguments);
        self.method(60, 31);
        taken.extend(self.take_all(queue));
        taken
    }

    /// Takes the first message out of a queue.
    #[track_caller]
    pub fn take(&mut self, queue: &str) -> Option<Stored> {
        let mut arguments = vec![0, 0];
        short(&mut arguments, queue);
        // No acknowledgement is asked for.
        arguments.push(1);
        self.send(1, 60, 70, &arguments);
        let (found, answer) = self.any_method();
        if found == (60, 72) {
            return None;
        }
        assert_eq!(found, (60, 71), "{}", String::from_utf8_lossy(&answer));
        let mut cursor = Cursor(&answer);
        cursor.take(9);
        Some(self.content(&mut cursor))
    }

    /// The message that follows; `place` has its exchange and its routing key.
    fn content(&mut self, place: &mut Cursor<'_>) -> Stored {
        let (exchange, routing_key) = (place.short(), place.short());
        let (kind, header) = self.frame();
        assert_eq!(kind, 2, "a content header");
        let (size, properties) = content_header(&header);
        let mut message = Stored { exchange, routing_key, ..properties };
        while message.data.len() < size {
            let (kind, body) = self.frame();
            assert_eq!(kind, 3, "a content body");
            message.data.extend(body);
        }
        message
    }
}
