//! `amqp://user:password@host:5672/vhost`, read without anything of it in an error.
//!
//! The client library's own parser is not used: it takes an IPv6 address for a missing host, and connects to localhost.

use walgate_sink::Secret;

/// Bytes of a virtual host's name, a user's name and other short strings of AMQP at the most.
pub(crate) const MAX_SHORT: usize = 255;

/// One server, and what its address says besides.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) vhost: Option<String>,
}

impl Address {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong, without the text itself: it may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Address, String> {
        let (tls, rest) = if let Some(rest) = text.strip_prefix("amqp://") {
            (false, rest)
        } else if let Some(rest) = text.strip_prefix("amqps://") {
            (true, rest)
        } else {
            return Err("it is not an address: write amqp://host:5672/vhost, or amqps://host:5671/vhost".to_owned());
        };
        if rest.contains(['?', '#']) {
            return Err("nothing may follow the virtual host: settings have keys of their own".to_owned());
        }
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path)),
            None => (rest, None),
        };
        let (userinfo, place) = match authority.rsplit_once('@') {
            Some((userinfo, place)) => (Some(userinfo), place),
            None => (None, authority),
        };
        let (user, password) = match userinfo.map(|userinfo| userinfo.split_once(':').unwrap_or((userinfo, ""))) {
            None => (None, None),
            Some((user, password)) => {
                let wrong = || "its user or password is not percent-encoded UTF-8".to_owned();
                let user = decoded(user).filter(|user| user.len() <= MAX_SHORT).ok_or_else(wrong)?;
                let password = decoded(password).ok_or_else(wrong)?;
                (Some(user), (!password.is_empty()).then(|| Secret::new(password)))
            }
        };
        if user.as_deref() == Some("") {
            return Err("its user is empty: write amqp://user:password@host".to_owned());
        }
        let (host, port) = host_and_port(place)?;
        Ok(Address {
            tls,
            host,
            port: port.unwrap_or(if tls { 5671 } else { 5672 }),
            user,
            password,
            vhost: path.map(vhost).transpose()?,
        })
    }

    /// `host:port`.
    pub(crate) fn shown(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn vhost(path: &str) -> Result<String, String> {
    if path.is_empty() {
        // By the letter of RabbitMQ's URI specification it is the virtual host with an empty name, which nobody means.
        return Err("its virtual host is empty: leave the last slash out for `/`, or write it as %2F".to_owned());
    }
    if path.contains('/') {
        return Err("its virtual host has a slash: write it as %2F".to_owned());
    }
    let name = decoded(path).ok_or_else(|| "its virtual host is not percent-encoded UTF-8".to_owned())?;
    check_vhost(&name)?;
    Ok(name)
}

/// Whether a virtual host can have this name.
pub(crate) fn check_vhost(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_SHORT || name.contains(char::is_control) {
        return Err(format!("a virtual host's name has 1 to {MAX_SHORT} bytes, without control characters"));
    }
    Ok(())
}

fn host_and_port(place: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("its IPv6 address has no end: write [::1]:5672")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| "its IPv6 address cannot be read: write [::1]:5672")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err("only a port may follow its host".to_owned()),
            }
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(plain) {
        return Err("its host is empty, or no host's name: write amqp://host:5672".to_owned());
    }
    let port = match port {
        None => None,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err("its port is no number from 1 to 65535".to_owned()),
        },
    };
    Ok((host.to_owned(), port))
}

/// Percent-encoding undone; `None` if it is broken.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
        out.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_their_forms() {
        for (text, shown, user, vhost) in [
            ("amqp://a", "a:5672", None, None),
            ("amqps://a", "a:5671", None, None),
            ("amqp://a:1/%2F", "a:1", None, Some("/")),
            ("amqp://u:p@a/shop", "a:5672", Some("u"), Some("shop")),
            ("amqp://u@a", "a:5672", Some("u"), None),
            ("amqp://u%40x:p%2Fq@a/a%2fb", "a:5672", Some("u@x"), Some("a/b")),
            ("amqp://[::1]", "[::1]:5672", None, None),
            ("amqps://u:p@[fd00::1]:99/v", "[fd00::1]:99", Some("u"), Some("v")),
            ("amqp://127.0.0.1:5673", "127.0.0.1:5673", None, None),
        ] {
            let address = Address::parse(text).unwrap();
            let found = (address.shown(), address.user.as_deref(), address.vhost.as_deref());
            assert_eq!(found, (shown.to_owned(), user, vhost), "{text}");
        }
        let address = Address::parse("amqp://u:p%2Fq@a").unwrap();
        assert_eq!(address.password.unwrap().expose(), "p/q");
        assert!(Address::parse("amqp://u:@a").unwrap().password.is_none());
    }

    #[test]
    fn what_is_wrong_is_said_without_the_address() {
        for bad in [
            "",
            "hunter2",
            "http://hunter2",
            "amqp://",
            "amqp://u:hunter2@",
            "amqp://u:hunter2@a/",
            "amqp://u:hunter2@a/b/c",
            "amqp://u:hunter2@a?heartbeat=5",
            "amqp://u:hunter2@a/v#x",
            "amqp://u:hunter2@a:0",
            "amqp://u:hunter2@a:99999",
            "amqp://u:hunter2%@a",
            "amqp://u:hunter2%zz@a",
            "amqp://u:hunter2%ff@a",
            "amqp://:hunter2@a",
            "amqp://u:hunter2@[::1",
            "amqp://u:hunter2@[::1]x",
            "amqp://u:hunter2@[a]",
            "amqp://u:hunter2@a b",
            "amqp://u:hunter2@a/%0a",
            "amqp://u:hunter2@a,b",
        ] {
            let fault = Address::parse(bad).unwrap_err();
            assert!(!fault.contains("hunter2"), "{bad}: {fault}");
        }
        assert!(Address::parse(&format!("amqp://a/{}", "v".repeat(256))).is_err());
    }
}
