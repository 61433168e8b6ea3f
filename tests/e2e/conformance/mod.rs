//! The conformance kit (`walgate_sink::conformance`) on every sink and its real server. A harness is a file: how the server
//! is started, stopped and read, with a proxy as the link that breaks.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "sqs")]
mod sqs;
#[cfg(feature = "webhook")]
mod webhook;

use walgate_sink::conformance::Able;

use crate::support::proxy::Proxy;

/// What every harness does with its link.
fn heal(proxy: &Proxy) {
    proxy.black_hole(false);
    proxy.drop_replies(false);
    proxy.accept();
}

/// The server has ended: without it nobody accepts connections.
fn end(proxy: &Proxy) -> Able {
    proxy.refuse();
    proxy.cut();
    Ok(())
}

fn cut(proxy: &Proxy) -> Able {
    // In order, and with RST, in turn: clients take the two differently.
    if proxy.accepted().is_multiple_of(2) {
        proxy.cut();
    } else {
        proxy.reset();
    }
    Ok(())
}

fn freeze(proxy: &Proxy) -> Able {
    proxy.black_hole(true);
    Ok(())
}

fn lose_answers(proxy: &Proxy) -> Able {
    proxy.drop_replies(true);
    Ok(())
}

/// A header's value, or its name, as it was before it was percent-encoded.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let byte = tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// The event's own headers among those of a message.
fn own<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let own = headers.filter_map(|(name, value)| Some((name.strip_prefix("walgate-header-")?, value)));
    own.map(|(name, value)| (decoded(name), decoded(value))).collect()
}
