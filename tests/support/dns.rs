//! A DNS server over UDP, by hand, that answers with whatever addresses a test wants at the moment.

use std::collections::HashMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::{Arc, Mutex};

/// What a name's addresses are, one answer after another; the last one for ever.
#[derive(Clone, Debug, Default)]
struct Name {
    answers: Vec<Vec<IpAddr>>,
    /// Questions for addresses of IPv4, and of IPv6: a resolver asks for both.
    asked: [usize; 2],
}

/// See the module. Names that it does not know do not exist.
pub struct Dns {
    names: Arc<Mutex<HashMap<String, Name>>>,
}

const A: u16 = 1;
const AAAA: u16 = 28;

impl Dns {
    /// Answers at this address for as long as the process lives.
    pub fn start(address: &str) -> Dns {
        let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("no name server at {address}: {error}"));
        let names = Arc::new(Mutex::new(HashMap::new()));
        let shared = names.clone();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut question) {
                if let Some(answer) = answer(&question[..length], &shared) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        Dns { names }
    }

    /// From now on the name has these addresses in turn, one list for each time that it is looked up.
    pub fn set(&self, name: &str, answers: &[&[IpAddr]]) {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        self.names.lock().expect("the names").insert(name.to_owned(), Name { answers, asked: [0; 2] });
    }
}

/// RFC 1035, section 4: one question, its answers without compression but for the name's own.
fn answer(question: &[u8], names: &Mutex<HashMap<String, Name>>) -> Option<Vec<u8>> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let end = at + 4;
    let mut names = names.lock().ok()?;
    let name = names.get_mut(&labels.join("."));
    let known = name.is_some();
    let addresses: Vec<IpAddr> = match (name, kind) {
        (Some(name), A | AAAA) => {
            let asked = &mut name.asked[usize::from(kind == AAAA)];
            let answer = name.answers.get(*asked).or(name.answers.last())?;
            *asked += 1;
            answer.iter().filter(|address| address.is_ipv4() == (kind == A)).copied().collect()
        }
        _ => Vec::new(),
    };
    let mut reply = question.get(..2)?.to_vec();
    // A response, authoritative, recursion as wanted; 3: there is no such name.
    reply.extend([0x84 | (question.get(2)? & 1), if known { 0x80 } else { 0x83 }]);
    reply.extend([0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    reply.extend(question.get(12..end)?);
    for address in addresses {
        // The name at offset 12; type, class IN, a time to live of 0.
        reply.extend([0xc0, 12, kind.to_be_bytes()[0], kind.to_be_bytes()[1], 0, 1, 0, 0, 0, 0, 0]);
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        reply.push(u8::try_from(bytes.len()).ok()?);
        reply.extend(bytes);
    }
    Some(reply)
}
