//! `source.wal_sender_timeout`: after which silence PostgreSQL ends our stream and lets go of the slot.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use walgate_sink::HumanDuration;

/// A duration such as `3s`, or `server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalSenderTimeout {
    /// walgate's session sets it.
    Of(HumanDuration),
    /// What the server, the database or the role has set.
    Server,
}

const SERVER: &str = "server";

impl FromStr for WalSenderTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == SERVER {
            return Ok(WalSenderTimeout::Server);
        }
        text.parse().map(WalSenderTimeout::Of).map_err(|_| {
            format!("`{text}` is neither a duration such as 3s nor `{SERVER}`, which leaves the server's own")
        })
    }
}

impl fmt::Display for WalSenderTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalSenderTimeout::Of(timeout) => timeout.fmt(f),
            WalSenderTimeout::Server => f.write_str(SERVER),
        }
    }
}

impl Serialize for WalSenderTimeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WalSenderTimeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text_form::deserialize(deserializer, "a duration such as 3s, or `server`")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_a_duration_or_the_servers_own() {
        let seconds = |seconds| WalSenderTimeout::Of(HumanDuration(Duration::from_secs(seconds)));
        for (text, value) in [("3s", seconds(3)), ("1m 30s", seconds(90)), ("server", WalSenderTimeout::Server)] {
            assert_eq!(text.parse(), Ok(value), "{text}");
            assert_eq!(value.to_string(), text);
        }
        for bad in ["", "3", "Server", "off", "default", "-1s"] {
            assert!(bad.parse::<WalSenderTimeout>().unwrap_err().contains("neither a duration"), "{bad}");
        }
    }
}
