//! A walsender that does what a test tells it to: expect this, send that. Its failures end the test when it is joined.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
    time::Duration,
};

use walgate_sink::Lsn;

use crate::source::wire::{HEADER, Status};

/// Nothing here takes so long: what waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a script against whoever connects to the port that is returned.
pub fn serve(script: impl FnOnce(&TcpListener) + Send + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || script(&listener)))
}

/// One connection, over anything that reads and writes.
pub struct Server<S> {
    pub stream: S,
}

/// A message in the protocol's frame.
pub fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend((payload.len() as u32 + 4).to_be_bytes());
    message.extend(payload);
    message
}

pub fn error_response(sqlstate: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0").as_bytes())
}

pub fn xlog_data(lsn: u64, body: &[u8]) -> Vec<u8> {
    let mut payload = vec![b'w'];
    payload.extend(lsn.to_be_bytes());
    payload.extend(lsn.to_be_bytes());
    payload.extend([0; 8]);
    payload.extend(body);
    message(b'd', &payload)
}

pub fn keepalive(wal_end: u64, reply: bool) -> Vec<u8> {
    let mut payload = vec![b'k'];
    payload.extend(wal_end.to_be_bytes());
    payload.extend([0; 8]);
    payload.push(reply.into());
    message(b'd', &payload)
}

pub fn authentication(code: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes(), rest].concat())
}

/// ParameterStatus, BackendKeyData, ReadyForQuery, with a notice in between.
pub fn ready() -> Vec<u8> {
    [
        message(b'S', b"server_version\x0015.8\0"),
        message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"),
        message(b'S', b"server_encoding\0UTF8\0"),
        message(b'K', &[0; 8]),
        message(b'Z', b"I"),
    ]
    .concat()
}

fn row(columns: &[&str]) -> Vec<u8> {
    let mut payload = (columns.len() as u16).to_be_bytes().to_vec();
    for column in columns {
        payload.extend((column.len() as u32).to_be_bytes());
        payload.extend(column.as_bytes());
    }
    [message(b'D', &payload), message(b'C', b"SHOW\0"), message(b'Z', b"I")].concat()
}

impl Server<TcpStream> {
    pub fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Server { stream }
    }

    /// A connection that has logged in without a password and streams.
    pub fn streaming(listener: &TcpListener, wal_sender_timeout: &str) -> Self {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(0, &[]));
        server.start(wal_sender_timeout);
        server
    }
}

impl<S: Read + Write> Server<S> {
    /// The parameters of the startup message.
    pub fn startup(&mut self) -> HashMap<String, String> {
        let payload = self.untagged();
        assert_eq!(payload[..4], [0, 3, 0, 0], "protocol 3.0");
        let mut texts = payload[4..].split(|byte| *byte == 0).map(|text| String::from_utf8(text.to_vec()).unwrap());
        let mut parameters = HashMap::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            parameters.insert(name, value);
        }
        parameters
    }

    /// SSLRequest, and the answer to it.
    pub fn tls_request(&mut self, answer: &[u8]) {
        assert_eq!(self.untagged(), 80_877_103u32.to_be_bytes());
        self.send(answer);
    }

    fn untagged(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut payload = vec![0; u32::from_be_bytes(length) as usize - 4];
        self.stream.read_exact(&mut payload).unwrap();
        payload
    }

    /// From the end of the login to CopyBothResponse.
    pub fn start(&mut self, wal_sender_timeout: &str) {
        let command = self.until_start(wal_sender_timeout);
        assert_eq!(
            command,
            "START_REPLICATION SLOT \"slot_1\" LOGICAL 0/0 (proto_version '1', publication_names '\"it''s\"')"
        );
        self.send(&message(b'W', &[0, 0, 0]));
    }

    /// The same without the last answer; the command is returned.
    pub fn until_start(&mut self, wal_sender_timeout: &str) -> String {
        self.send(&ready());
        assert_eq!(self.query(), "IDENTIFY_SYSTEM");
        self.send(&row(&["7000000000000000001", "3", "0/1949AD8", "shop"]));
        assert!(self.query().starts_with("SET datestyle"));
        self.send(&[message(b'C', b"SET\0"), message(b'Z', b"I")].concat());
        assert!(self.query().starts_with("SELECT pg_catalog.current_setting('wal_sender_timeout')"));
        self.send(&row(&[wal_sender_timeout, "4711"]));
        self.query()
    }

    pub fn query(&mut self) -> String {
        let (tag, mut payload) = self.message();
        assert_eq!((tag, payload.pop()), (b'Q', Some(0)));
        String::from_utf8(payload).unwrap()
    }

    /// A password, or SASL data.
    pub fn password(&mut self) -> Vec<u8> {
        let (tag, payload) = self.message();
        assert_eq!(tag, b'p');
        payload
    }

    pub fn message(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut payload = vec![0; length as usize - 4];
        self.stream.read_exact(&mut payload).unwrap();
        (header[0], payload)
    }

    /// The next message, which must be a status.
    pub fn status(&mut self) -> Status {
        let (tag, payload) = self.message();
        Status::decode(&message(tag, &payload)).expect("a standby status update")
    }

    /// Statuses until one confirms as much.
    pub fn confirmed(&mut self, lsn: u64) -> Status {
        loop {
            let status = self.status();
            if status.flush >= Lsn(lsn) {
                return status;
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Reads to the end of the connection; a reset is one.
    pub fn ended(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection was not closed"),
            Err(_) => rest,
        }
    }
}
