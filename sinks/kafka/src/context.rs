//! What librdkafka calls back: reports on records, errors, tokens, statistics, its log.

use std::{error::Error, fmt, sync::Arc};

use rdkafka::{
    ClientContext, Message as _,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::sync::watch;
use walgate_sink::{Secret, text};

use crate::{flights::Flights, notices::Notices, statistics::Statistics, token::TokenFile};

/// What all clients of a sink share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// The sink's name.
    pub(crate) name: Arc<str>,
    pub(crate) secrets: Arc<[Secret]>,
    pub(crate) token: Option<TokenFile>,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The context of one client. Its methods run on threads of librdkafka and of the one who polls.
pub(crate) struct Context {
    surroundings: Surroundings,
    notices: watch::Sender<Notices>,
    /// Where reports on records go; `None`: nothing is sent.
    flights: Option<Arc<Flights>>,
    statistics: Option<Arc<Statistics>>,
}

impl Context {
    /// For a client that sends.
    pub(crate) fn sending(
        surroundings: &Surroundings,
        flights: &Arc<Flights>,
        statistics: &Arc<Statistics>,
    ) -> (Self, watch::Receiver<Notices>) {
        Context::new(surroundings, Some(Arc::clone(flights)), Some(Arc::clone(statistics)))
    }

    /// For a client that looks.
    pub(crate) fn looking(surroundings: &Surroundings) -> (Self, watch::Receiver<Notices>) {
        Context::new(surroundings, None, None)
    }

    fn new(
        surroundings: &Surroundings,
        flights: Option<Arc<Flights>>,
        statistics: Option<Arc<Statistics>>,
    ) -> (Self, watch::Receiver<Notices>) {
        let (notices, heard) = watch::channel(Notices::default());
        (Context { surroundings: surroundings.clone(), notices, flights, statistics }, heard)
    }

    /// The client has met a fatal error, and sends nothing any more. May be said again.
    pub(crate) fn ended(&self, said: &str) {
        self.notices.send_if_modified(|notices| {
            let news = notices.broken.is_none();
            if news {
                notices.broken = Some(text::excerpt(said.as_bytes(), &self.surroundings.secrets));
            }
            news
        });
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let said = text::excerpt(message.as_bytes(), &self.surroundings.secrets);
        let sink = &self.surroundings.name;
        // What matters comes as an error too, and is said in walgate's own words.
        tracing::debug!(sink = %sink, facility, level = ?level, "librdkafka: {said}");
    }

    fn stats_raw(&self, document: &[u8]) {
        if let Some(statistics) = &self.statistics {
            statistics.take_in(document);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        self.notices.send_modify(|notices| notices.take_in(code, reason, &self.surroundings.secrets));
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        match &self.surroundings.token {
            Some(file) => file.read().map_err(Into::into),
            None => Err("no token is configured".into()),
        }
    }
}

impl ProducerContext for Context {
    /// The record's sequence number.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, sequence: usize) {
        let Some(flights) = &self.flights else { return };
        let outcome = match delivered {
            Ok(_) => Ok(()),
            Err((error, record)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                tracing::debug!(sink = %self.surroundings.name, topic = record.topic(), "record not accepted: {code}");
                Err(code)
            }
        };
        flights.reported(sequence as u64, outcome);
    }
}
