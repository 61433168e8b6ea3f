//! From a delivery to its request.

use std::{fmt, sync::Arc};

use reqwest::{
    Body, Method, Request, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use walgate_sink::{
    Bytes, Delivery, Envelope, Enveloped, Event, RejectReason, Rejection,
    envelope::{DEBEZIUM_KEY, percent_encoded, trace_context},
};

use crate::{
    config::{CLOUDEVENTS, Settings},
    headers,
    signature::Signer,
};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static EVENT_TYPE: HeaderName = HeaderName::from_static("walgate-event-type");
static KEY: HeaderName = HeaderName::from_static("walgate-key");
static POSITION: HeaderName = HeaderName::from_static("walgate-position");
static COMMITTED_AT: HeaderName = HeaderName::from_static("walgate-committed-at");
/// W3C trace context: forwarded under its own names.
static TRACE: [HeaderName; 2] = [HeaderName::from_static("traceparent"), HeaderName::from_static("tracestate")];

/// Bytes of id, type, key and headers of an event that go into one request at the most: servers take 8 to 32 KiB of
/// headers, and answer more with nothing that would name the cause.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Length of a URL with a rendered path at the most.
const MAX_URL_BYTES: usize = 8 << 10;

/// Makes requests out of deliveries. What is the same in all of them is made once.
pub(crate) struct Requests {
    /// The endpoint of deliveries without a path of their own, and that of the configured path where it is literal.
    fixed: Vec<(Option<String>, Endpoint)>,
    base: Url,
    headers: HeaderMap,
    signer: Option<Signer>,
    max_body: Option<u64>,
    envelope: Envelope,
}

/// A URL, and how it is shown: without its query, which may hold a token.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) url: Url,
    pub(crate) shown: Arc<str>,
    /// Whether it is the same for every event.
    pub(crate) fixed: bool,
}

impl Endpoint {
    fn new(url: Url, fixed: bool) -> Self {
        let mut shown = url.clone();
        shown.set_query(None);
        let mut shown: String = shown.into();
        // A URL is ASCII, so any place is a character's end; should it not be, it stays whole.
        if shown.len() > 200 && shown.is_char_boundary(200) {
            shown.truncate(200);
            shown.push('…');
        }
        Endpoint { url, shown: shown.into(), fixed }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

impl Requests {
    /// `path` is the configuration's own template, `max_body` its bound.
    pub(crate) fn new(settings: Settings, path: Option<&str>, max_body: Option<u64>) -> Self {
        let Settings { url: base, signer, headers, envelope, .. } = settings;
        let mut fixed = vec![(None, Endpoint::new(base.clone(), true))];
        let literal = path.filter(|path| !is_template(path));
        if let Some((path, url)) = literal.and_then(|path| Some((path, append(&base, path).ok()?))) {
            fixed.push((Some(path.to_owned()), Endpoint::new(url, true)));
        }
        Requests { fixed, base, headers, signer, max_body, envelope }
    }

    /// The configured endpoint.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// The request, and where it goes. `now` is the present second since 1970.
    pub(crate) fn build(&self, delivery: &Delivery, now: u64) -> Result<(Request, Endpoint), Rejection> {
        let event = &delivery.event;
        let enveloped = match &self.envelope {
            Envelope::Raw => None,
            envelope => Some(envelope.wrap(event)?),
        };
        let body = enveloped.as_ref().map_or(&event.payload, |enveloped| &enveloped.body).clone().unwrap_or_default();
        self.check_size(if enveloped.is_some() { "body" } else { "payload" }, body.len())?;
        let endpoint = self.endpoint(delivery.target.get("path").map(|path| &**path))?;
        let headers = self.headers_of(event, enveloped.as_ref(), &body, now)?;
        let mut request = Request::new(Method::POST, endpoint.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(Body::from(body));
        Ok((request, endpoint))
    }

    /// Whether something of so many bytes may be a body.
    pub(crate) fn check_size(&self, what: &str, bytes: usize) -> Result<(), Rejection> {
        match self.max_body {
            Some(max) if bytes as u64 > max => {
                let message = format!("the {what} has {bytes} bytes, more than the {max} of `max_body`");
                Err(Rejection::new(RejectReason::TooLarge, message))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn endpoint(&self, path: Option<&str>) -> Result<Endpoint, Rejection> {
        if let Some((_, endpoint)) = self.fixed.iter().find(|(fixed, _)| fixed.as_deref() == path) {
            return Ok(endpoint.clone());
        }
        append(&self.base, path.unwrap_or_default())
            .map(|url| Endpoint::new(url, false))
            .map_err(|why| Rejection::new(RejectReason::InvalidTarget, format!("the rendered path {why}")))
    }

    fn headers_of(
        &self,
        event: &Event,
        enveloped: Option<&Enveloped>,
        body: &Bytes,
        now: u64,
    ) -> Result<HeaderMap, Rejection> {
        if event.id.is_empty() {
            return Err(invalid("the event's id is empty, and `webhook-id` is made of it"));
        }
        let size = event.size() - event.body().len();
        if size > MAX_HEADER_BYTES {
            let message = format!(
                "id, type, key and headers have {size} bytes: more than the {MAX_HEADER_BYTES} that fit into a request"
            );
            return Err(Rejection::new(RejectReason::TooLarge, message));
        }
        let mut headers = self.headers.clone();
        headers.reserve(8);
        if body.is_empty() {
            // The client would leave it out, and some servers answer 411 then.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        match enveloped {
            None => own_headers(event, &mut headers),
            Some(enveloped) => self.enveloped_headers(enveloped, event, &mut headers),
        }
        .ok_or_else(unfit)?;
        self.sign(&mut headers, headers::id(&event.id).ok_or_else(unfit)?, now, body).ok_or_else(unfit)?;
        Ok(headers)
    }

    /// The headers of another envelope than `raw`. `None`: something does not fit into a header.
    fn enveloped_headers(&self, enveloped: &Enveloped, event: &Event, headers: &mut HeaderMap) -> Option<()> {
        if let Some(content_type) = enveloped.content_type
            && !headers.contains_key(CONTENT_TYPE)
        {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        for (name, value) in trace_context(event) {
            headers.insert(HeaderName::from_static(name), headers::foreign(value)?);
        }
        for (name, value) in
            enveloped.named(CLOUDEVENTS).filter(|(name, _)| !TRACE.iter().any(|trace| *trace == **name))
        {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            let value = match &self.envelope {
                Envelope::CloudEvents(_) => ascii(percent_encoded(value).into_owned())?,
                _ => headers::field(value)?,
            };
            headers.insert(name, value);
        }
        if let Some(key) = event.key.as_ref().filter(|_| self.envelope == Envelope::Debezium) {
            headers.insert(HeaderName::from_static(DEBEZIUM_KEY), headers::field(key)?);
        }
        for (name, value) in &enveloped.headers {
            headers.append(headers::forwarded_name(name)?, headers::field(value)?);
        }
        Some(())
    }

    /// Adds what Standard Webhooks asks for. `None`: something does not fit into a header.
    pub(crate) fn sign(&self, headers: &mut HeaderMap, id: HeaderValue, now: u64, body: &[u8]) -> Option<()> {
        let timestamp = now.to_string();
        if let Some(signer) = &self.signer {
            headers.insert(WEBHOOK_SIGNATURE.clone(), ascii(signer.sign(id.to_str().ok()?, &timestamp, body))?);
        }
        headers.insert(WEBHOOK_ID.clone(), id);
        headers.insert(WEBHOOK_TIMESTAMP.clone(), ascii(timestamp)?);
        Some(())
    }

    /// The headers that every request has.
    pub(crate) fn static_headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    /// The envelope.
    pub(crate) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// `max_body`, if there is one.
    pub(crate) fn max_body(&self) -> Option<u64> {
        self.max_body
    }
}

/// Content type, `walgate-*` headers and trace context. `None`: something does not fit into a header.
fn own_headers(event: &Event, headers: &mut HeaderMap) -> Option<()> {
    if event.payload.is_some() && !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(event.format.content_type()));
    }
    headers.insert(EVENT_TYPE.clone(), headers::field(&event.event_type)?);
    if let Some(key) = &event.key {
        headers.insert(KEY.clone(), headers::field(key)?);
    }
    headers.insert(POSITION.clone(), ascii(event.position.to_string())?);
    headers.insert(COMMITTED_AT.clone(), ascii(event.committed_at.to_string())?);
    for (name, value) in event.headers.iter() {
        match TRACE.iter().find(|trace| name.eq_ignore_ascii_case(trace.as_str())) {
            Some(trace) => drop(headers.insert(trace.clone(), headers::foreign(value)?)),
            None => drop(headers.append(headers::forwarded_name(name)?, headers::field(value)?)),
        }
    }
    Some(())
}

/// Whether the text has places that each event fills. Without a brace a template is its own text.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}'])
}

fn unfit() -> Rejection {
    invalid("a field of the event does not fit into a header")
}

pub(crate) fn ascii(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

pub(crate) fn invalid(message: &str) -> Rejection {
    Rejection::new(RejectReason::InvalidEvent, message)
}

/// Whether a rendered path can be appended to a URL; what is wrong with it if not.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    let base = Url::parse("https://localhost").map_err(|_| "cannot be checked")?;
    append(&base, path).map(|_| ())
}

/// The base URL with a path, a query or both behind it. Scheme, host and port are always those of the base.
fn append(base: &Url, appended: &str) -> Result<Url, &'static str> {
    if !appended.starts_with(['/', '?']) {
        return Err("does not begin with `/` or `?`");
    }
    let (path, query) = appended.split_once('?').map_or((appended, None), |(path, query)| (path, Some(query)));
    let mut text = base.origin().ascii_serialization();
    text.push_str(if path.is_empty() { base.path() } else { base.path().trim_end_matches('/') });
    text.push_str(path);
    for (index, query) in base.query().into_iter().chain(query).enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(query);
    }
    if text.len() > MAX_URL_BYTES {
        return Err("is too long for a URL");
    }
    // Whatever a URL parser would change (dot segments, also encoded ones; backslashes, tabs, spaces, other
    // characters), another one on the way may change differently.
    match Url::parse(&text) {
        Ok(url) if url.as_str() == text && url.fragment().is_none() => Ok(url),
        _ => Err("is not a plain URL path: it has a segment `.` or `..`, or a character that must be percent-encoded"),
    }
}

#[cfg(test)]
mod tests;
