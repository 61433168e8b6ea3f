//! A receiver of webhooks that asks for a token, in both modes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use walgate_sink_webhook::WebhookFactory;

use crate::support::proxy::Proxy;
use crate::support::receiver::{Receipt, Receiver, SECRET, ok, reply};

const TOKEN: &str = "webhook-canary-a82e44";
const WRONG: &str = "webhook-canary-wrong-19fd";
const MAX_BODY: usize = 300_000;

struct Webhooks {
    proxy: Proxy,
    receiver: Receiver,
    mode: &'static str,
}

impl Webhooks {
    fn start(mode: &'static str) -> Webhooks {
        let receiver = Receiver::start();
        receiver.script(|request| match (request.headers.get("authorization"), request.path) {
            (Some(token), "/hook/events") if token == &format!("Bearer {TOKEN}") => ok(),
            (Some(token), _) if token == &format!("Bearer {TOKEN}") => reply(404).into(),
            _ => reply(401).into(),
        });
        Webhooks { proxy: Proxy::to(receiver.port()), receiver, mode }
    }

    fn with(&self, token: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/hook", self.proxy.port());
        json!({ "url": url, "secret": SECRET, "bearer_token": token, "mode": self.mode, "max_body": format!("{MAX_BODY}B") })
    }
}

/// An element of a batch.
#[derive(Deserialize)]
struct Element<'a> {
    id: String,
    key: Option<String>,
    headers: serde_json::Map<String, Value>,
    payload_encoding: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

fn single(receipt: &Receipt) -> Received {
    let headers = receipt.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")));
    Received {
        id: receipt.id.clone(),
        key: receipt.header("walgate-key").map(super::decoded),
        headers: super::own(headers),
        body: receipt.body.clone(),
    }
}

fn batch(receipt: &Receipt) -> Vec<Received> {
    let elements: Vec<Element<'_>> = serde_json::from_slice(&receipt.body).expect("an array of events");
    let received = |element: Element<'_>| {
        // Text is a JSON string.
        let text = serde_json::from_str::<String>(element.payload.get());
        let body = match (text, element.payload_encoding) {
            (Ok(text), Some(_)) => STANDARD.decode(text).expect("base64"),
            (Ok(text), None) => text.into_bytes(),
            (Err(_), _) => element.payload.get().as_bytes().to_vec(),
        };
        let headers =
            element.headers.iter().map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()));
        Received { id: element.id, key: element.key, headers: headers.collect(), body }
    };
    elements.into_iter().map(received).collect()
}

impl Harness for Webhooks {
    fn config(&self) -> Value {
        self.with(TOKEN)
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("path", "/events".to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        let token = format!("Bearer {TOKEN}");
        let mut receipts = self.receiver.receipts();
        receipts.retain(|receipt| receipt.path == "/hook/events" && receipt.header("authorization") == Some(&token));
        match self.mode {
            "batch" => receipts.iter().flat_map(batch).collect(),
            _ => receipts.iter().map(single).collect(),
        }
    }

    fn heal(&mut self) {
        self.receiver.come_back();
        super::heal(&self.proxy);
    }

    fn cut(&mut self) -> Able {
        super::cut(&self.proxy)
    }

    fn stop(&mut self) -> Able {
        self.receiver.go_down();
        super::end(&self.proxy)
    }

    fn start(&mut self) {
        self.receiver.come_back();
        self.proxy.accept();
    }

    fn freeze(&mut self) -> Able {
        super::freeze(&self.proxy)
    }

    fn lose_answers(&mut self) -> Able {
        super::lose_answers(&self.proxy)
    }

    fn refused(&mut self) -> Result<Refused, Unable> {
        Ok(Refused { config: self.with(WRONG), named: format!("127.0.0.1:{}", self.proxy.port()) })
    }

    fn check_sees_credentials(&self) -> bool {
        false
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        let target = vec![("path", "/nowhere".to_owned())];
        Ok(UnknownTarget { config: self.config(), target, named: "/hook/nowhere".to_owned() })
    }

    fn carries(&self) -> Carries {
        Carries::default().with_sizes(200_000, Some(MAX_BODY + 1))
    }

    fn secrets(&self) -> Vec<String> {
        vec![TOKEN.to_owned(), WRONG.to_owned(), SECRET.to_owned()]
    }

    fn printed(&mut self) -> Vec<String> {
        let config: walgate_sink_webhook::WebhookConfig =
            walgate_sink::read_config(&self.config()).expect("a configuration");
        vec![format!("{config:?}")]
    }
}

fn assert_conforms(mode: &'static str) {
    let mut webhooks = Webhooks::start(mode);
    conformance::run::<WebhookFactory>(&mut webhooks).assert_passed();
    // The verifier takes text only: what it says of the payload that is every byte is not about the signature.
    let mut faults = webhooks.receiver.bad_signatures();
    faults.retain(|fault| !fault.ends_with("payload invalid"));
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn webhooks_conform() {
    assert_conforms("single");
}

#[test]
fn batches_of_webhooks_conform() {
    assert_conforms("batch");
}
