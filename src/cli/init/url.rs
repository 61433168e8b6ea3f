//! From the administrator's connection string to walgate's: the same server and database, another role, no secrets.

/// Settings that say where the server is and how to reach it; every other one is the administrator's own.
const KEPT: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "sslmode",
    "sslrootcert",
    "channel_binding",
    "target_session_attrs",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];

/// The same place for another role, in the form that was given (URI or key=value). None: it could not be read.
pub(super) fn for_role(admin: &str, role: &str, database: &str) -> Option<String> {
    let admin = admin.trim();
    let uri = ["postgres://", "postgresql://"].iter().find_map(|scheme| Some((*scheme, admin.strip_prefix(scheme)?)));
    match uri {
        Some((scheme, rest)) => Some(from_uri(scheme, rest, role, database)),
        None => from_pairs(admin, role, database),
    }
}

fn from_uri(scheme: &str, rest: &str, role: &str, database: &str) -> String {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    // As libpq reads it: the first `@` before the first `/` ends the user and password.
    let authority = place.split('/').next().unwrap_or_default();
    let hosts = authority.split_once('@').map_or(authority, |(_, hosts)| hosts);
    let mut url = format!("{scheme}{}@{hosts}/{}", percent(role), percent(database));
    let kept = query.split('&').filter(|pair| KEPT.contains(&pair.split('=').next().unwrap_or_default()));
    for (index, pair) in kept.enumerate() {
        url.push(if index == 0 { '?' } else { '&' });
        url.push_str(pair);
    }
    url
}

fn from_pairs(text: &str, role: &str, database: &str) -> Option<String> {
    let mut kept = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        if KEPT.contains(&key.trim()) {
            kept.push(format!("{}={}", key.trim(), pair_value(&value)));
        }
        rest = after.trim_start();
    }
    kept.push(format!("dbname={}", pair_value(database)));
    kept.push(format!("user={}", pair_value(role)));
    Some(kept.join(" "))
}

/// A value of a key=value string: bare up to white space, or in single quotes; a backslash takes the next character as
/// it is in both.
fn value(text: &str) -> Option<(String, &str)> {
    let (mut value, quoted) = (String::new(), text.starts_with('\''));
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((index, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, text.get(index + 1..)?)),
            c if c.is_whitespace() && !quoted => return Some((value, text.get(index..)?)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

fn pair_value(value: &str) -> String {
    if !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || matches!(c, '\'' | '\\')) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_stays_and_the_administrator_goes() {
        for (admin, url) in [
            ("postgres://postgres:s3cret@db.example:5433/postgres", "postgres://walgate@db.example:5433/shop"),
            ("postgresql://postgres@db.example", "postgresql://walgate@db.example/shop"),
            ("postgres://db.example", "postgres://walgate@db.example/shop"),
            (
                "postgres:///x?host=/run/postgresql&user=postgres&password=s3cret",
                "postgres://walgate@/shop?host=/run/postgresql",
            ),
            (
                "postgres://a:s3cret@h1:1,h2:2/x?sslmode=verify-full&application_name=psql&sslrootcert=/ca.pem&sslkey=/k",
                "postgres://walgate@h1:1,h2:2/shop?sslmode=verify-full&sslrootcert=/ca.pem",
            ),
            ("postgres://postgres:s3cret@[::1]:5432/x", "postgres://walgate@[::1]:5432/shop"),
            (
                "host=db port=5433 user=postgres password='s3 cre\\'t' dbname=x",
                "host=db port=5433 dbname=shop user=walgate",
            ),
            (
                "host = '/my run' user=postgres sslmode=require",
                "host='/my run' sslmode=require dbname=shop user=walgate",
            ),
            ("", "dbname=shop user=walgate"),
        ] {
            let found = for_role(admin, "walgate", "shop").unwrap();
            assert_eq!(found, url);
            assert!(!found.contains("cre"), "{found}");
        }
        assert_eq!(for_role("host='unclosed", "walgate", "shop"), None);
        assert_eq!(for_role("no pairs", "walgate", "shop"), None);
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(for_role("postgres://h", "a@b", "my shop").unwrap(), "postgres://a%40b@h/my%20shop");
        assert_eq!(
            for_role("host=h", "o'b", "my shop").unwrap(),
            "host=h dbname='my shop' user=o\\'b".replace("o\\'b", "'o\\'b'")
        );
    }
}
