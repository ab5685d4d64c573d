//! What the CNI plugin says of its ledger, which meshd itself may not see.

use std::time::Duration;

use podmesh_proto::local_api::{HealthView, Response};
use podmesh_proto::time::Moment;

use super::Node;
use crate::clock;

/// A runtime tries a pod again, or asks for the state, within this time; a plugin that is not
/// called any more can't say that all is well.
const BELIEVED: Duration = Duration::from_secs(90);
/// Characters of a sentence that are kept.
const MOST_CHARACTERS: usize = 300;

/// The last word on the ledger.
#[derive(Debug, Default)]
pub(super) struct LedgerNews {
    trouble: Option<(String, Moment)>,
}

impl LedgerNews {
    fn take(&mut self, trouble: Option<String>, now: Moment) {
        self.trouble = trouble.map(|sentence| {
            let shown = sentence.chars().filter(|letter| !letter.is_control());
            (shown.take(MOST_CHARACTERS).collect(), now + BELIEVED)
        });
    }

    /// Why no pod can be attached, as long as that is believed.
    pub(super) fn trouble(&self, now: Moment) -> Option<&str> {
        let (sentence, until) = self.trouble.as_ref()?;
        (*until > now).then_some(sentence)
    }

    pub(super) fn health(&self, now: Moment) -> Option<HealthView> {
        self.trouble(now).map(|sentence| HealthView {
            code: "MESH-CNI-001".to_owned(),
            message: format!("the CNI plugin can't attach pods: {sentence}"),
            next: Some(
                "pods that run are not touched; the plugin tries again with each call".to_owned(),
            ),
        })
    }
}

impl Node {
    pub(super) fn take_ledger_news(&mut self, trouble: Option<String>) -> Response {
        let now = clock::now().moment;
        if self.ledger.trouble(now).is_none()
            && let Some(sentence) = &trouble
        {
            tracing::warn!(
                reason = sentence,
                "the CNI plugin's ledger can't be written"
            );
        }
        self.ledger.take(trouble, now);
        Response::Done {
            message: "noted".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_believed_until_the_plugin_takes_it_back_or_falls_silent() {
        let start = clock::now().moment;
        let mut news = LedgerNews::default();
        assert_eq!(news.trouble(start), None);
        news.take(Some("it is\nfull".to_owned()), start);
        assert_eq!(news.trouble(start), Some("it isfull"));
        assert!(news.health(start).unwrap().message.contains("it isfull"));
        assert_eq!(news.trouble(start + BELIEVED), None);
        news.take(Some("ä".repeat(1000)), start);
        let kept = news.trouble(start).unwrap().chars().count();
        assert_eq!(kept, MOST_CHARACTERS);
        news.take(None, start);
        assert_eq!(news.trouble(start), None);
    }
}
