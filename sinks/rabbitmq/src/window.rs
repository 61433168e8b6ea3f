//! Messages over one channel: sent in order, in one go, and confirmed in any order.
//!
//! **Returned messages.** An unroutable message comes back (`basic.return`) before it is confirmed. The client library
//! keeps what came back in a queue, and hands its head to whichever confirm comes next: with several messages on their
//! way that is often another's. So a return is told by what it says itself (exchange, routing key, message id), and a
//! confirm without one counts only when no return of its own can be under way:
//!
//! - when every message of the window is confirmed, every return has been handed out: each of them came before its own
//!   confirm, and each confirm took one as long as there were any;
//! - a confirm that took none found the queue empty, so that whatever came back before it is with a confirm that was
//!   complete before it. One more look at all of them finds it.

use std::{
    collections::HashSet,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use lapin::{Channel, Confirmation, PublisherConfirm, message::BasicReturnMessage, options::BasicPublishOptions};
use tokio::time::{Instant, sleep_until};
use walgate_sink::ByteString;

use crate::message::Message;

type Sending = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send>>;

/// How far one message has come.
enum Stage {
    Sending(Sending),
    Sent(PublisherConfirm),
    /// `clean`: the library had no returned message left for it.
    Acknowledged {
        clean: bool,
    },
    Refused,
    /// The channel or the connection has gone.
    Lost,
}

struct Entry {
    /// Its place in the batch.
    index: usize,
    exchange: ByteString,
    routing_key: ByteString,
    message_id: ByteString,
    stage: Stage,
}

/// How a window ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Every message has its confirm.
    Settled,
    /// The channel or the connection broke.
    Broken(lapin::Error),
    /// The time was over.
    Silent,
}

/// What is known of a message at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Confirmed, and it did not come back.
    Stored,
    /// It came back.
    Returned,
    /// `basic.nack`.
    Refused,
}

/// See the module. What is known when it is dropped is marked.
pub(crate) struct Window<M: Fn(usize, Fate)> {
    entries: Vec<Entry>,
    /// Exchange, routing key and message id of what came back.
    returned: HashSet<(String, String, String)>,
    mark: M,
    settled: bool,
}

impl Entry {
    /// Moves on as far as possible. Ready when nothing more will come.
    fn poll(&mut self, cx: &mut Context<'_>, back: &mut Vec<BasicReturnMessage>) -> Poll<Result<(), lapin::Error>> {
        loop {
            match &mut self.stage {
                Stage::Sending(sending) => match sending.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(confirm)) => self.stage = Stage::Sent(confirm),
                    Poll::Ready(Err(error)) => {
                        self.stage = Stage::Lost;
                        return Poll::Ready(Err(error));
                    }
                },
                Stage::Sent(confirm) => match pin!(confirm).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Confirmation::Ack(message))) => {
                        self.stage = Stage::Acknowledged { clean: message.is_none() };
                        back.extend(message);
                    }
                    Poll::Ready(Ok(Confirmation::Nack(message))) => {
                        self.stage = Stage::Refused;
                        back.extend(message);
                    }
                    // The channel is in confirm mode, so this does not come; it would say nothing about the message.
                    Poll::Ready(Ok(Confirmation::NotRequested)) => self.stage = Stage::Lost,
                    Poll::Ready(Err(error)) => {
                        self.stage = Stage::Lost;
                        return Poll::Ready(Err(error));
                    }
                },
                Stage::Acknowledged { .. } | Stage::Refused | Stage::Lost => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<M: Fn(usize, Fate)> Window<M> {
    /// A window whose outcomes are told to `mark`.
    pub(crate) fn new(mark: M) -> Self {
        Window { entries: Vec::new(), returned: HashSet::new(), mark, settled: false }
    }

    /// Sends a message. Its frames are in the library's queue when this returns.
    pub(crate) async fn send(&mut self, channel: &Channel, index: usize, message: Message) {
        let Message { exchange, routing_key, properties, payload, .. } = message;
        let message_id = properties.message_id().as_ref().map_or_else(ByteString::new, |id| id.as_str().into());
        let (to, key, channel) = ((&*exchange).into(), (&*routing_key).into(), channel.clone());
        let sending: Sending = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            channel.basic_publish(to, key, options, &payload, properties).await
        });
        let mut entry = Entry { index, exchange, routing_key, message_id, stage: Stage::Sending(sending) };
        let mut back = Vec::new();
        // The first look at it puts it into the queue. What it says comes up again in `drive`, but for an error.
        let error = poll_fn(|cx| {
            Poll::Ready(match entry.poll(cx, &mut back) {
                Poll::Ready(Err(error)) => Some(error),
                _ => None,
            })
        })
        .await;
        if let Some(error) = error {
            entry.stage = Stage::Sending(Box::pin(std::future::ready(Err(error))));
        }
        self.take_back(back);
        self.entries.push(entry);
    }

    /// Waits for the confirms.
    pub(crate) async fn drive(&mut self, deadline: Instant) -> End {
        let mut timeout = pin!(sleep_until(deadline));
        for at in 0..self.entries.len() {
            let mut back = Vec::new();
            let Some(entry) = self.entries.get_mut(at) else { break };
            let done = tokio::select! {
                biased;
                done = poll_fn(|cx| entry.poll(cx, &mut back)) => Some(done),
                () = timeout.as_mut() => None,
            };
            self.take_back(back);
            match done {
                Some(Ok(())) => {}
                Some(Err(error)) => return End::Broken(error),
                None => return End::Silent,
            }
        }
        End::Settled
    }

    /// Marks what is known.
    pub(crate) fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        self.look();
        let over = |entry: &Entry| matches!(entry.stage, Stage::Acknowledged { .. } | Stage::Refused);
        let complete = self.entries.iter().all(over);
        let stored: Vec<usize> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| match entry.stage {
                Stage::Acknowledged { clean } => clean || complete,
                _ => false,
            })
            .map(|(at, _)| at)
            .collect();
        if !complete {
            self.look();
        }
        for (at, entry) in self.entries.iter().enumerate() {
            let place = (entry.exchange.to_string(), entry.routing_key.to_string(), entry.message_id.to_string());
            if self.returned.contains(&place) {
                (self.mark)(entry.index, Fate::Returned);
            } else if matches!(entry.stage, Stage::Refused) {
                (self.mark)(entry.index, Fate::Refused);
            } else if stored.binary_search(&at).is_ok() {
                (self.mark)(entry.index, Fate::Stored);
            }
        }
    }

    /// One look at every message.
    fn look(&mut self) {
        let mut back = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        for entry in &mut self.entries {
            let _ = entry.poll(&mut cx, &mut back);
        }
        self.take_back(back);
    }

    fn take_back(&mut self, back: Vec<BasicReturnMessage>) {
        for message in back {
            let delivery = &message.delivery;
            let id = delivery.properties.message_id().as_ref().map_or("", |id| id.as_str());
            let place = (delivery.exchange.as_str(), delivery.routing_key.as_str(), id);
            self.returned.insert((place.0.to_owned(), place.1.to_owned(), place.2.to_owned()));
        }
    }
}

impl<M: Fn(usize, Fate)> Drop for Window<M> {
    fn drop(&mut self) {
        self.settle();
    }
}
