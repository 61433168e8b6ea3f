//! `mode: batch`: several events in one request, which is accepted or refused whole.

use std::collections::VecDeque;

use reqwest::{
    Body, Method, Request,
    header::{CONTENT_TYPE, HeaderValue},
};
use sha2::{Digest as _, Sha256};
use walgate_sink::{
    Batch, ByteString, Bytes, Delivery, Envelope, RejectReason, Rejection, append_document,
    envelope::BATCH_CONTENT_TYPE,
};

use crate::request::{Endpoint, Requests, ascii, invalid};

/// Bytes of one body at the most where `max_body` does not say.
pub(crate) const DEFAULT_MAX_BODY: u64 = 1 << 20;
/// Deliveries of one request at the most.
pub(crate) const MAX_BATCH: usize = 100;
/// What an element has beside the fields of its event, at the most: names, braces, position and time.
const ELEMENT_OVERHEAD: usize = 256;

/// The deliveries of a batch that go to one URL, by their index, in order.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) endpoint: Endpoint,
    pub(crate) indexes: Vec<usize>,
}

/// A request that may be sent: some deliveries of a group, and their body.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) indexes: Vec<usize>,
    body: Bytes,
}

/// What is still to be asked of a group, first things first. Refused parts come back as their halves.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    waiting: VecDeque<Vec<usize>>,
    max_body: usize,
    envelope: &'a Envelope,
}

impl Requests {
    /// Sorts a batch by URL; deliveries that have none are given to `reject`.
    pub(crate) fn groups(&self, batch: &Batch, mut reject: impl FnMut(usize, Rejection)) -> Vec<Group> {
        let mut groups: Vec<(Option<&ByteString>, Group)> = Vec::new();
        for (index, delivery) in batch.iter().enumerate() {
            if delivery.event.id.is_empty() {
                reject(index, invalid("the event's id is empty, and receivers deduplicate on it"));
                continue;
            }
            // What cannot be an element is known before it is one.
            if let Envelope::CloudEvents(settings) = self.envelope()
                && let Err(rejection) = settings.check(&delivery.event)
            {
                reject(index, rejection);
                continue;
            }
            let path = delivery.target.get("path");
            if let Some((_, group)) = groups.iter_mut().find(|(of, _)| *of == path) {
                group.indexes.push(index);
                continue;
            }
            match self.endpoint(path.map(|path| &**path)) {
                Ok(endpoint) => groups.push((path, Group { endpoint, indexes: vec![index] })),
                Err(rejection) => reject(index, rejection),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// The request of a part. `now` is the present second since 1970.
    pub(crate) fn of_part(
        &self,
        batch: &Batch,
        endpoint: &Endpoint,
        part: &Part,
        now: u64,
    ) -> Result<Request, Rejection> {
        let unfit = || invalid("the batch does not fit into a request");
        let mut headers = self.static_headers();
        headers.reserve(5);
        if !headers.contains_key(CONTENT_TYPE) {
            let content_type = match self.envelope() {
                Envelope::CloudEvents(_) => BATCH_CONTENT_TYPE,
                _ => "application/json",
            };
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let id = id_of(part.indexes.iter().filter_map(|index| batch.get(*index)));
        self.sign(&mut headers, ascii(id).ok_or_else(unfit)?, now, &part.body).ok_or_else(unfit)?;
        let mut request = Request::new(Method::POST, endpoint.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(Body::from(part.body.clone()));
        Ok(request)
    }

    /// The bound on a body in this mode.
    pub(crate) fn max_part(&self) -> usize {
        usize::try_from(self.max_body().unwrap_or(DEFAULT_MAX_BODY)).unwrap_or(usize::MAX)
    }
}

impl<'a> Parts<'a> {
    /// All of a group, in bodies of at most so many bytes; a larger element goes alone.
    pub(crate) fn new(indexes: Vec<usize>, max_body: usize, envelope: &'a Envelope) -> Self {
        Parts { waiting: VecDeque::from([indexes]), max_body, envelope }
    }

    /// The next part to send.
    pub(crate) fn next(&mut self, batch: &Batch) -> Option<Part> {
        let mut indexes = self.waiting.pop_front()?;
        let sizes = indexes.iter().filter_map(|index| batch.get(*index)).map(|delivery| delivery.event.size());
        let room = sizes.fold(2, |sum: usize, size| sum.saturating_add(size + ELEMENT_OVERHEAD)).min(self.max_body);
        let mut body = Vec::with_capacity(room);
        for (place, index) in indexes.iter().enumerate() {
            let Some(delivery) = batch.get(*index) else { continue };
            let before = body.len();
            body.push(if place == 0 { b'[' } else { b',' });
            match self.envelope {
                // It was checked, so nothing is refused here.
                Envelope::CloudEvents(settings) => drop(settings.append_document(&delivery.event, &mut body)),
                _ => append_document(&delivery.event, &mut body),
            }
            if body.len() >= self.max_body && place > 0 {
                body.truncate(before);
                self.waiting.push_front(indexes.split_off(place));
                break;
            }
        }
        body.push(b']');
        Some(Part { indexes, body: body.into() })
    }

    /// A part was refused, and it is not known which of its events is at fault: asks for each half, in order. False
    /// where there is nothing to halve.
    pub(crate) fn halve(&mut self, part: &Part) -> bool {
        let (first, second) = part.indexes.split_at(part.indexes.len() / 2);
        if first.is_empty() {
            return false;
        }
        self.waiting.push_front(second.to_vec());
        self.waiting.push_front(first.to_vec());
        true
    }

    /// What was not asked yet.
    pub(crate) fn rest(&mut self) -> impl Iterator<Item = usize> {
        self.waiting.drain(..).flatten()
    }
}

impl Part {
    /// Bytes of the body.
    pub(crate) fn len(&self) -> usize {
        self.body.len()
    }
}

/// Whether a refusal may be due to one event among several.
pub(crate) fn is_about_content(reason: RejectReason) -> bool {
    !matches!(reason, RejectReason::UnknownTarget | RejectReason::InvalidTarget)
}

/// `webhook-id` of a batch: the same for the same events in the same order. Ids are hashed with their lengths, so that
/// no two lists can be taken for each other.
fn id_of<'a>(deliveries: impl Iterator<Item = &'a Delivery>) -> String {
    let mut hash = Sha256::new();
    for delivery in deliveries {
        hash.update((delivery.dedup_id.len() as u64).to_be_bytes());
        hash.update(delivery.dedup_id.as_bytes());
    }
    let mut id = String::with_capacity(38);
    id.push_str("batch_");
    for byte in hash.finalize().iter().take(16) {
        for digit in [byte >> 4, byte & 15] {
            id.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Event, SinkFactory as _, Target};

    use super::*;
    use crate::WebhookFactory;

    fn batch(payloads: &[&str]) -> Batch {
        let delivery = |(index, payload): (usize, &&str)| {
            let mut event = Event::new(index.to_string(), "t");
            event.payload = Some(Bytes::copy_from_slice(payload.as_bytes()));
            Delivery {
                event,
                target: Target::new(WebhookFactory::TARGET, [None]),
                ordering_key: None,
                dedup_id: index.to_string().into(),
                attempt: 1,
            }
        };
        Batch::new(payloads.iter().enumerate().map(delivery).collect())
    }

    fn parts(batch: &Batch, max_body: usize) -> Vec<(Vec<usize>, usize)> {
        let mut parts = Parts::new((0..batch.len()).collect(), max_body, &Envelope::Raw);
        std::iter::from_fn(|| parts.next(batch)).map(|part| (part.indexes.clone(), part.len())).collect()
    }

    #[test]
    fn bodies_are_bounded_and_nothing_is_left_out() {
        let large = format!("\"{}\"", "x".repeat(1000));
        let batch = batch(&["1", "2", &large, "3", "4", "5"]);
        assert_eq!(parts(&batch, 1 << 20).len(), 1);
        for max_body in [1, 2, 50, 300, 400, 600, 1000, 1300, 1500, 2000] {
            let parts = parts(&batch, max_body);
            let sent: Vec<usize> = parts.iter().flat_map(|(indexes, _)| indexes.clone()).collect();
            assert_eq!(sent, [0, 1, 2, 3, 4, 5], "{max_body}");
            for (indexes, bytes) in parts {
                assert!(bytes <= max_body || indexes.len() == 1, "{bytes} > {max_body}: {indexes:?}");
            }
        }
    }

    #[test]
    fn a_body_is_an_array_of_whole_documents() {
        let batch = batch(&["{\"a\": 1}", "[2]"]);
        let part = Parts::new(vec![0, 1], 1 << 20, &Envelope::Raw).next(&batch).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&part.body).unwrap();
        assert_eq!(body[0]["id"], "0");
        assert_eq!(body[0]["payload"]["a"], 1);
        assert_eq!(body[1]["payload"][0], 2);
        assert_eq!(body.as_array().unwrap().len(), 2);
    }

    /// What a receiver that refuses every request with a culprit in it takes and refuses, in order.
    fn bisect(batch: &Batch, culprits: u32) -> (Vec<usize>, Vec<usize>, usize) {
        let mut parts = Parts::new((0..batch.len()).collect(), 1 << 20, &Envelope::Raw);
        let (mut taken, mut refused, mut requests) = (Vec::new(), Vec::new(), 0);
        while let Some(part) = parts.next(batch) {
            requests += 1;
            if part.indexes.iter().all(|index| culprits & (1 << index) == 0) {
                taken.extend(&part.indexes);
            } else if !parts.halve(&part) {
                refused.extend(&part.indexes);
            }
        }
        (taken, refused, requests)
    }

    #[test]
    fn every_set_of_culprits_is_found_and_no_other_event_is_held() {
        for size in 1..=8_usize {
            let payloads = vec!["1"; size];
            let batch = batch(&payloads);
            for culprits in 0..1_u32 << size {
                let (taken, refused, requests) = bisect(&batch, culprits);
                let (bad, good): (Vec<usize>, Vec<usize>) = (0..size).partition(|index| culprits & (1 << index) != 0);
                assert_eq!((taken, refused), (good, bad), "in order: {culprits:b}");
                assert!(requests < 2 * size, "{requests} requests for {size}");
            }
        }
    }

    #[test]
    fn the_id_of_a_batch_is_that_of_its_events() {
        let all = batch(&["1", "2", "3"]);
        let id = |indexes: &[usize]| id_of(indexes.iter().map(|index| &all[*index]));
        assert_eq!(id(&[0, 1]), id(&[0, 1]));
        assert_ne!(id(&[0, 1]), id(&[1, 0]));
        assert_ne!(id(&[0, 1]), id(&[0, 1, 2]));
        assert!(id(&[0]).starts_with("batch_") && id(&[0]).len() == 38, "{}", id(&[0]));
    }
}
