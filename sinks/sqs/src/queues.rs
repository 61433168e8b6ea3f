//! Queues by the names that deliveries give: their URLs and limits, asked for once and kept for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_sqs::{Client, types::QueueAttributeName};
use tokio::time::{Instant, timeout_at};
use walgate_sink::{ByteString, text};

use crate::{
    classify::{Class, Trouble, class_of},
    connector::Connector,
    pack, queue,
};

/// Queues that are kept: templates may name any number of them.
const MAX_KEPT: usize = 1024;
/// How long what was read of a queue is believed.
const KEPT_TIME: Duration = Duration::from_secs(60);
/// Below this a stopped consumer loses events soon.
const SHORT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// What is known of a queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) url: String,
    /// Bytes of a message at the most.
    pub(crate) max_message: usize,
    /// What of its settings is a risk.
    pub(crate) warnings: Vec<String>,
    read: Instant,
}

/// See the module. Bounded.
#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<HashMap<ByteString, Arc<Queue>>>);

impl Queues {
    /// The queue of this name or URL; asks SQS where it is not known, or not any more.
    pub(crate) async fn get(
        &self,
        name: &ByteString,
        connector: &Connector,
        deadline: Instant,
    ) -> Result<Arc<Queue>, Trouble> {
        let kept = self.kept().get(name).cloned();
        if let Some(queue) = &kept
            && queue.read.elapsed() < KEPT_TIME
        {
            return Ok(Arc::clone(queue));
        }
        match self.look(name, connector, deadline).await {
            Ok(queue) => Ok(queue),
            // What cannot be asked at present is as it was.
            Err(trouble) => kept.filter(|_| may_pass(&trouble)).ok_or(trouble),
        }
    }

    /// Asks SQS, whatever is known.
    pub(crate) async fn look(
        &self,
        name: &ByteString,
        connector: &Connector,
        deadline: Instant,
    ) -> Result<Arc<Queue>, Trouble> {
        let client = connector.client(deadline).await?;
        let asked = timeout_at(deadline, ask(name, connector, client)).await;
        let queue = Arc::new(asked.unwrap_or(Err(Trouble::Silent))?);
        let mut kept = self.kept();
        if kept.len() >= MAX_KEPT && !kept.contains_key(name) {
            // Rare, and only a request for each that comes again.
            kept.clear();
        }
        kept.insert(name.clone(), Arc::clone(&queue));
        Ok(queue)
    }

    /// Forgets a queue that was not there.
    pub(crate) fn forget(&self, name: &ByteString) {
        self.kept().remove(name);
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<ByteString, Arc<Queue>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn may_pass(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Silent | Trouble::Broken(_) => true,
        Trouble::Answered(answer) => matches!(class_of(answer.status, &answer.code, &answer.message), Class::Failed(_)),
        _ => false,
    }
}

async fn ask(name: &str, connector: &Connector, client: &Client) -> Result<Queue, Trouble> {
    let url = if queue::is_url(name) {
        name.to_owned()
    } else {
        let answer = client.get_queue_url().queue_name(name).send().await;
        let answer = answer.map_err(|error| connector.trouble(&error))?;
        answer
            .queue_url
            .filter(|url| !url.is_empty())
            .ok_or_else(|| Trouble::Unusable(format!("its answer for queue `{name}` holds no URL")))?
    };
    let names = [
        QueueAttributeName::MaximumMessageSize,
        QueueAttributeName::FifoQueue,
        QueueAttributeName::MessageRetentionPeriod,
    ];
    // A standard queue may not have the attribute FifoQueue, and Amazon then refuses the question.
    let names =
        names.into_iter().filter(|attribute| *attribute != QueueAttributeName::FifoQueue || queue::is_fifo(name));
    let request = client.get_queue_attributes().queue_url(&url).set_attribute_names(Some(names.collect()));
    let mut warnings = Vec::new();
    let attributes = match request.send().await {
        Ok(answer) => answer.attributes.unwrap_or_default(),
        Err(error) => {
            let trouble = connector.trouble(&error);
            let Trouble::Answered(answer) = &trouble else { return Err(trouble) };
            if class_of(answer.status, &answer.code, &answer.message) != Class::Denied || answer.code.contains("Token")
            {
                return Err(trouble);
            }
            // Whether the credentials may send is for the sending to say.
            warnings.push(format!(
                "the attributes of queue `{name}` may not be read ({}): its MaximumMessageSize is taken to be 1 MiB; \
                 allow sqs:GetQueueAttributes",
                text::excerpt(answer.code.as_bytes(), connector.secrets())
            ));
            HashMap::new()
        }
    };
    let number = |attribute| attributes.get(&attribute).and_then(|text: &String| text.parse::<u64>().ok());
    let max = number(QueueAttributeName::MaximumMessageSize).and_then(|max| usize::try_from(max).ok());
    if let Some(seconds) = number(QueueAttributeName::MessageRetentionPeriod)
        && Duration::from_secs(seconds) < SHORT_RETENTION
    {
        warnings.push(format!(
            "queue `{name}` drops messages after {seconds} s, read or not (MessageRetentionPeriod): a consumer that is \
             away for longer loses events"
        ));
    }
    if queue::is_fifo(name) && attributes.get(&QueueAttributeName::FifoQueue).is_some_and(|fifo| fifo != "true") {
        return Err(Trouble::Unusable(format!("queue `{name}` has the name of a FIFO queue, and is none")));
    }
    let max_message = max.unwrap_or(pack::MAX_BYTES).min(pack::MAX_BYTES);
    Ok(Queue { url, max_message, warnings, read: Instant::now() })
}
