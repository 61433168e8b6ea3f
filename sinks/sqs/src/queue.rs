//! The grammar of queues: names, and URLs.

/// Characters of a queue's name at the most, `.fifo` included.
const MAX_NAME: usize = 80;
/// What the name of every FIFO queue ends with, and of no other.
const FIFO: &str = ".fifo";
/// Bytes of a URL at the most.
const MAX_URL: usize = 512;

/// Whether it is a URL rather than a name.
pub(crate) fn is_url(queue: &str) -> bool {
    queue.contains("://")
}

/// Whether the name, or the URL's, is that of a FIFO queue.
pub(crate) fn is_fifo(queue: &str) -> bool {
    queue.ends_with(FIFO)
}

/// Whether the text has places that each event fills.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}'])
}

/// The part of a URL before the queue's name, with the slash; empty for a name.
pub(crate) fn base(queue: &str) -> &str {
    match queue.rfind('/') {
        Some(slash) if is_url(queue) => queue.get(..=slash).unwrap_or_default(),
        _ => "",
    }
}

/// Whether it is a legal name or URL; what is wrong with it if not.
pub(crate) fn check(queue: &str) -> Result<(), String> {
    if is_url(queue) { check_url(queue) } else { check_name(queue) }
}

/// The documented grammar: letters, digits, `-` and `_`, and `.fifo` at the end of a FIFO queue.
fn check_name(name: &str) -> Result<(), String> {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    if stem.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(c) = stem.chars().find(|c| !is_plain(*c)) {
        return Err(format!("it holds `{}`: a queue's name has letters, digits, `-` and `_` only", c.escape_debug()));
    }
    if name.len() > MAX_NAME {
        return Err(format!("it has {} characters, and a queue's name has {MAX_NAME} at the most", name.len()));
    }
    Ok(())
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

fn check_url(url: &str) -> Result<(), String> {
    if url.len() > MAX_URL {
        return Err(format!("it has {} bytes, and a queue's URL has {MAX_URL} at the most", url.len()));
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("it is not a URL of a queue: it begins with neither https:// nor http://")?;
    let parts: Vec<&str> = rest.split('/').collect();
    let [host, account @ .., name] = &parts[..] else {
        return Err(
            "it is not a URL of a queue: write one such as https://sqs.REGION.amazonaws.com/ACCOUNT/NAME".into()
        );
    };
    let in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(in_host) {
        return Err("its host is not one".to_owned());
    }
    if account.is_empty() || account.iter().any(|part| part.is_empty() || !part.chars().all(is_plain)) {
        return Err("between its host and the queue's name stands no account".to_owned());
    }
    check_name(name).map_err(|why| format!("its last part is not a queue's name: {why}"))
}

/// Whether a template can give legal queues, as far as its literal parts tell.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    if !is_template(template) {
        return check(template);
    }
    if is_url(template) && is_template(base(template)) {
        return Err("in a URL only the queue's name, behind the last `/`, may come from an event".to_owned());
    }
    let mut sample = String::new();
    let mut inside = false;
    for c in template.chars() {
        match c {
            '{' => inside = true,
            '}' => {
                inside = false;
                sample.push('x');
            }
            c if !inside => sample.push(c),
            _ => {}
        }
    }
    check(&sample)
}

/// The region in the host of one of Amazon's own URLs.
pub(crate) fn region(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    let region = host.strip_prefix("sqs.")?.strip_suffix(".amazonaws.com")?;
    (!region.is_empty() && region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_urls_have_a_grammar() {
        let long = "q".repeat(80);
        for good in [
            "orders",
            "orders.fifo",
            "A-b_9",
            &long,
            "https://sqs.eu-central-1.amazonaws.com/123456789012/orders.fifo",
            "http://127.0.0.1:4566/000000000000/orders",
            "http://[::1]:9324/queue/orders",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let longer = "q".repeat(81);
        for bad in [
            "",
            ".fifo",
            "a.b",
            "a.fifo.fifo",
            "a b",
            "a/b",
            "../x",
            "é",
            "a\r\n",
            "*",
            &longer,
            &format!("{}.fifo", "q".repeat(76)),
            "https://",
            "https://host",
            "https://host/orders",
            "https:///1/orders",
            "https://host/1/",
            "https://host//orders",
            "https://user:pw@host/1/orders",
            "https://host/1/orders?x=1",
            "https://host/1/../orders",
            "ftp://host/1/orders",
            "file:///etc/passwd",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check("a\u{1b}b").unwrap_err().is_ascii());
    }

    #[test]
    fn templates_fill_names_only() {
        for good in ["orders-{key}", "{event_type[0]}.fifo", "https://host/1/orders-{key}.fifo"] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        for bad in
            ["orders.{key}", "https://{key}/1/orders", "https://host/{key}/orders", "https://host/{key}", "a b{key}"]
        {
            assert!(check_template(bad).is_err(), "{bad}");
        }
        assert_eq!(base("https://host/1/orders-{key}"), "https://host/1/");
        assert_eq!(base("orders"), "");
    }

    #[test]
    fn urls_of_amazon_name_their_region() {
        assert_eq!(region("https://sqs.eu-central-1.amazonaws.com/1/q"), Some("eu-central-1"));
        for other in
            ["orders", "http://localhost:4566/1/q", "https://sqs.evil.example/1/q", "https://sqs..amazonaws.com/1/q"]
        {
            assert_eq!(region(other), None, "{other}");
        }
        assert!(is_fifo("a.fifo") && !is_fifo("a"));
    }
}
