//! A first configuration, commented.

use crate::control::Setup;

/// Where the database is.
pub(super) enum Source {
    /// Not known: a sample to be changed.
    Sample,
    /// This connection string; it holds no password.
    Url(String),
}

/// The configuration's text. `password_file` is relative to the file that it will stand in.
pub(super) fn configuration(setup: &Setup, source: &Source, password_file: Option<&str>) -> String {
    let (url, note) = match source {
        Source::Sample => {
            (format!("postgres://{}@localhost:5432/postgres", setup.role), "   # your host, port and database")
        }
        Source::Url(url) => (url.clone(), ""),
    };
    let password = match password_file {
        Some(file) => format!("  password_file: {}", scalar(file)),
        None => "  # The password: from PGPASSWORD, a passfile, or a file of mode 0600 beside this one:\n  \
                 # password_file: walgate.password"
            .to_owned(),
    };
    format!(
        "\
# walgate: committed outbox events, from PostgreSQL to every sink. `walgate check --connect` looks whether it would work.

source:
  url: {url}{note}
{password}
  slot: {slot}
  publication: {publication}

outbox:
  table: {table}
  # Which column holds what, where the names differ. `key` names the column whose events must stay in order.
  # columns:
  #   id: id
  #   event_type: event_type
  #   payload: payload
  #   key: aggregate_id
  #   headers: headers

sinks:
  # Prints every event as one line of JSON: good for a first look.
  console:
    stdout: {{}}
  # Sends every event as a signed HTTP request.
  # partner:
  #   webhook:
  #     url: https://partner.example/hooks
  #     secret_file: partner.secret

routes:
  # `*` stands for one segment of the type, `**` for any number of them. Every route that matches applies.
  - event_type: \"**\"
    to: console
  # - event_type: [order.created, order.paid]
  #   to: [console, partner]

# An event that no route matches: drop (counted, logged once for each type) or halt.
# unrouted: drop
",
        url = scalar(&url),
        slot = scalar(&setup.slot),
        publication = scalar(&setup.publication),
        table = scalar(&setup.table.to_string()),
    )
}

/// A string as YAML: plain where that reads as the same string, in double quotes otherwise. `${` is doubled, so that the
/// configuration takes it as it is.
fn scalar(text: &str) -> String {
    let text = text.replace("${", "$${");
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ':' | '@' | '?' | '=' | '&' | '%' | ',')
        })
        && !text.ends_with(':')
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text;
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_read_as_what_they_were() {
        for text in [
            "walgate",
            "postgres://a@[::1]:1/b",
            "\"My\".t",
            "null",
            "007",
            "",
            "a: b",
            "a #b",
            "x:",
            "it's\\",
            "é",
            "-",
            "a\tb",
        ] {
            let document = format!("v: {}\n", scalar(text));
            let read: serde_json::Value = serde_saphyr::from_str(&document).unwrap();
            assert_eq!(read["v"], text, "{document}");
        }
        assert_eq!(scalar("a${b}"), "\"a$${b}\"");
    }
}
