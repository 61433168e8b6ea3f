//! libpq's password file: `host:port:database:user:password`, `*` for any, backslash escapes.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use walgate_sink::Secret;

/// The most that is read of a password file.
const LIMIT: u64 = 1 << 20;

/// What a password file says about one server.
pub(super) enum Lookup {
    Found(Secret),
    /// No file, or no line that fits.
    Nothing,
    /// The file exists but must not, or cannot, be used: why, and what to do.
    Ignored(String),
}

/// Host as it stands in the file, port, database and user.
pub(super) struct Wanted<'a> {
    pub host: &'a str,
    pub port: u16,
    pub dbname: &'a str,
    pub user: &'a str,
}

/// Looks a password up. As in libpq the file is ignored where anybody but its owner can read it.
pub(super) fn look_up(path: &Path, wanted: &Wanted<'_>) -> Lookup {
    let shown = path.display();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lookup::Nothing,
        Err(error) => return Lookup::Ignored(format!("password file `{shown}` cannot be read: {error}")),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            return Lookup::Ignored(format!("password file `{shown}` is not a regular file"));
        }
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            let mode = metadata.permissions().mode() & 0o777;
            return Lookup::Ignored(format!(
                "password file `{shown}` was ignored because others can read it (mode {mode:04o}): run `chmod 600 {shown}`"
            ));
        }
        Ok(_) => {}
        Err(error) => return Lookup::Ignored(format!("password file `{shown}` cannot be read: {error}")),
    }
    for line in BufReader::new(file.take(LIMIT)).split(b'\n') {
        let Ok(line) = line else { break };
        if let Ok(line) = std::str::from_utf8(&line)
            && let Some(password) = matches(line.trim_end_matches('\r'), wanted)
        {
            return Lookup::Found(Secret::new(password));
        }
    }
    Lookup::Nothing
}

fn matches(line: &str, wanted: &Wanted<'_>) -> Option<String> {
    if line.starts_with('#') || line.is_empty() {
        return None;
    }
    let port = wanted.port.to_string();
    let mut rest = line;
    for value in [wanted.host, &port, wanted.dbname, wanted.user] {
        let (field, literal, after) = field(rest)?;
        let any = literal && field == "*";
        if !any && field != value {
            return None;
        }
        rest = after;
    }
    let mut password = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => password.extend(chars.next()),
            // libpq takes what stands before a further colon.
            ':' => break,
            c => password.push(c),
        }
    }
    (!password.is_empty()).then_some(password)
}

/// One field up to an unescaped colon; whether it had no escape in it; what follows the colon.
fn field(text: &str) -> Option<(String, bool, &str)> {
    let (mut value, mut literal) = (String::new(), true);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return Some((value, literal, &text[at + 1..])),
            '\\' => {
                literal = false;
                value.extend(chars.next().map(|(_, c)| c));
            }
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(line: &str) -> Option<String> {
        matches(line, &Wanted { host: "db", port: 5432, dbname: "shop", user: "walgate" })
    }

    #[test]
    fn lines_match_as_in_libpq() {
        for (line, expected) in [
            ("db:5432:shop:walgate:pw", Some("pw")),
            ("*:*:*:*:pw", Some("pw")),
            ("db:5432:shop:walgate:p\\:w\\\\", Some("p:w\\")),
            ("d\\b:5432:shop:walgate:pw", Some("pw")),
            ("db:5432:shop:walgate:pw:more", Some("pw")),
            ("db:5433:shop:walgate:pw", None),
            ("other:5432:shop:walgate:pw", None),
            ("\\*:*:*:*:pw", None),
            ("# db:5432:shop:walgate:pw", None),
            ("db:5432:shop:walgate:", None),
            ("db:5432:shop", None),
            ("", None),
            ("\\", None),
        ] {
            assert_eq!(password(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_ignored_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        let wanted = Wanted { host: "db", port: 5432, dbname: "shop", user: "walgate" };
        assert!(matches!(look_up(&path, &wanted), Lookup::Nothing));
        std::fs::write(&path, "# comment\nx:1:y:z:no\r\ndb:*:*:*:canary\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let Lookup::Ignored(note) = look_up(&path, &wanted) else { panic!("used") };
        assert!(note.contains("chmod 600") && note.contains("0640") && !note.contains("canary"), "{note}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let Lookup::Found(found) = look_up(&path, &wanted) else { panic!("not found") };
        assert_eq!(found.expose(), "canary");
        assert!(matches!(look_up(folder.path(), &wanted), Lookup::Ignored(_)));
    }
}
