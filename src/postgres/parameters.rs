//! A connection string, taken apart into parameters as libpq does: a URI or `key=value` pairs.
//!
//! Errors never quote the text around them: a password that was not encoded may stand anywhere in it.

use super::conninfo::SettingsError;

/// Parameters in the order of the text; the last one of a name counts.
pub(super) type Pairs = Vec<(String, String)>;

/// What walgate understands.
pub(super) const SUPPORTED: [&str; 26] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssencmode",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// What libpq knows and walgate does not do: silently ignoring one of these could connect less strictly than asked.
const UNSUPPORTED: [&str; 23] = [
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
];

/// Takes a connection string apart.
///
/// # Errors
/// Where the text is not well formed, or names a parameter that is not known or not supported.
pub(super) fn split(text: &str) -> Result<Pairs, SettingsError> {
    let pairs = match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => uri(rest, text.len() - rest.len())?,
        None => key_value(text)?,
    };
    for (name, _) in &pairs {
        known(name)?;
    }
    Ok(pairs)
}

fn known(name: &str) -> Result<(), SettingsError> {
    if SUPPORTED.contains(&name) {
        return Ok(());
    }
    if UNSUPPORTED.contains(&name) {
        return Err(SettingsError::UnsupportedParameter { name: name.to_owned() });
    }
    // What does not look like a name may be a piece of an unquoted password.
    let shown = !name.is_empty()
        && name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !shown {
        return Err(SettingsError::UnknownParameter { name: "(not a parameter's name)".into(), nearest: None });
    }
    let nearest = SUPPORTED
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, name), *known))
        .min()
        .and_then(|(distance, known)| (distance <= 3 && distance < name.len()).then_some(known));
    Err(SettingsError::UnknownParameter { name: name.to_owned(), nearest })
}

fn syntax(at: usize, problem: &'static str) -> SettingsError {
    SettingsError::Syntax { at: at + 1, problem }
}

/// libpq's `conninfo_parse`: blanks between pairs, blanks around `=`, single quotes, backslash escapes.
fn key_value(text: &str) -> Result<Pairs, SettingsError> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().enumerate().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let Some(&(start, _)) = chars.peek() else { return Ok(pairs) };
        let mut name = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        if chars.next_if(|(_, c)| *c == '=').is_none() {
            return Err(syntax(start, "`=` is missing after a parameter's name (quote values that contain blanks)"));
        }
        if name.is_empty() {
            return Err(syntax(start, "a parameter's name is missing before `=`"));
        }
        while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if let Some((quote, _)) = chars.next_if(|(_, c)| *c == '\'') {
            loop {
                match chars.next() {
                    None => return Err(syntax(quote, "the quoted value that starts here has no end")),
                    Some((_, '\'')) => break,
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                    Some((_, c)) => value.push(c),
                }
            }
        } else {
            while let Some((_, c)) = chars.next_if(|(_, c)| !c.is_whitespace()) {
                match c {
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
        }
        if value.contains('\0') {
            return Err(syntax(start, "a value contains a null character"));
        }
        pairs.push((name, value));
    }
}

const ENCODE: &str = "`@` is not expected here: percent-encode `@`, `/`, `:`, `?` and `#` in a user, password or database name (`@` is %40, `/` is %2F)";

/// libpq's `conninfo_uri_parse`: `[user[:password]@][host[:port],...][/dbname][?name=value&...]`.
fn uri(rest: &str, offset: usize) -> Result<Pairs, SettingsError> {
    let mut pairs = Vec::new();
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (rest, None),
    };
    let (authority, dbname) = match before_query.split_once('/') {
        Some((authority, dbname)) => (authority, Some(dbname)),
        None => (before_query, None),
    };
    let hosts = match authority.split_once('@') {
        Some((credentials, hosts)) => {
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credentials, None),
            };
            push(&mut pairs, "user", user, offset)?;
            if let Some(password) = password {
                push(&mut pairs, "password", password, offset + user.len() + 1)?;
            }
            hosts
        }
        None => authority,
    };
    let hosts_at = offset + (authority.len() - hosts.len());
    if hosts.contains('@') {
        return Err(syntax(hosts_at, ENCODE));
    }
    split_hosts(&mut pairs, hosts, hosts_at)?;
    if let Some(dbname) = dbname {
        let at = offset + authority.len() + 1;
        if dbname.contains('@') {
            return Err(syntax(at, ENCODE));
        }
        push(&mut pairs, "dbname", dbname, at)?;
    }
    if let Some(query) = query {
        split_query(&mut pairs, query, offset + before_query.len() + 1)?;
    }
    Ok(pairs)
}

fn push(pairs: &mut Pairs, name: &str, encoded: &str, at: usize) -> Result<(), SettingsError> {
    if !encoded.is_empty() {
        pairs.push((name.to_owned(), decode(encoded, at)?));
    }
    Ok(())
}

fn split_hosts(pairs: &mut Pairs, hosts: &str, at: usize) -> Result<(), SettingsError> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    let mut position = at;
    for entry in hosts.split(',') {
        let (name, port) = if let Some(bracketed) = entry.strip_prefix('[') {
            let (address, after) = bracketed
                .split_once(']')
                .ok_or_else(|| syntax(position, "the IPv6 address that starts here has no `]`"))?;
            if address.is_empty() {
                return Err(syntax(position, "an IPv6 address is missing between `[` and `]`"));
            }
            match after.strip_prefix(':') {
                Some(port) => (address, port),
                None if after.is_empty() => (address, ""),
                None => return Err(syntax(position, "only `:port`, `,`, `/` or `?` may follow an IPv6 address")),
            }
        } else {
            entry.split_once(':').unwrap_or((entry, ""))
        };
        names.push(decode(name, position)?);
        ports.push(decode(port, position)?);
        position += entry.len() + 1;
    }
    if names.iter().any(|name| !name.is_empty()) {
        pairs.push(("host".into(), names.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".into(), ports.join(",")));
    }
    Ok(())
}

fn split_query(pairs: &mut Pairs, query: &str, at: usize) -> Result<(), SettingsError> {
    let mut position = at;
    for part in query.split('&') {
        if !part.is_empty() {
            let Some((name, value)) = part.split_once('=') else {
                return Err(syntax(position, "`=` is missing in a query parameter"));
            };
            if value.contains('=') {
                return Err(syntax(position, "a query parameter has two `=`: percent-encode the second as %3D"));
            }
            let (name, value) = (decode(name, position)?, decode(value, position + name.len() + 1)?);
            match (name.as_str(), value.as_str()) {
                // As libpq: the JDBC driver's way to ask for TLS.
                ("ssl", "true") => pairs.push(("sslmode".into(), "require".into())),
                _ => pairs.push((name, value)),
            }
        }
        position += part.len() + 1;
    }
    Ok(())
}

fn decode(text: &str, at: usize) -> Result<String, SettingsError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(0), Some(0)) => return Err(syntax(at, "%00 is not allowed")),
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(syntax(at, "`%` must be followed by two hexadecimal digits (a `%` itself is %25)")),
        }
    }
    if bytes.contains(&0) {
        return Err(syntax(at, "a null character is not allowed"));
    }
    String::from_utf8(bytes).map_err(|_| syntax(at, "what is percent-encoded here is not UTF-8"))
}
