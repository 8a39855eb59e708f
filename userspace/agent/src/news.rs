//! What the agent hears that the daemon acts on.

use shoal_api::Standing;
use tokio::sync::watch;

/// Refusals in a row before one is believed: a manager that has just joined, or lags, may not know
/// a node that has just joined.
const BELIEVED: u32 = 3;

/// Where it is published.
#[derive(Debug)]
pub(crate) struct News {
    /// What the cluster wants of this node's certificate.
    pub(crate) standing: watch::Sender<Option<Standing>>,
    /// Why no manager has this node.
    pub(crate) refused: watch::Sender<Option<String>>,
    /// Addresses of managers.
    pub(crate) managers: watch::Sender<Vec<String>>,
    refusals: u32,
}

impl News {
    pub(crate) fn new() -> Self {
        Self {
            standing: watch::Sender::new(None),
            refused: watch::Sender::new(None),
            managers: watch::Sender::new(Vec::new()),
            refusals: 0,
        }
    }

    /// A manager does not want this node.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.refusals += 1;
        if self.refusals >= BELIEVED {
            let why = Some(why.to_owned());
            if self.refused.send_if_modified(|now| (*now != why).then(|| *now = why).is_some()) {
                tracing::error!(reason = %self.refused.borrow().as_deref().unwrap_or_default(),
                    "the managers refuse this node");
            }
        }
    }

    /// A manager has opened a session.
    pub(crate) fn welcome(&mut self) {
        self.refusals = 0;
        self.refused.send_if_modified(|now| now.take().is_some());
    }

    /// The managers say what they want of this node's certificate.
    pub(crate) fn stand(&self, standing: Standing) {
        let standing = Some(standing);
        self.standing.send_if_modified(|now| {
            let news = *now != standing;
            *now = standing;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_believed_when_it_is_repeated_and_over_with_a_welcome() {
        let mut news = News::new();
        let refused = news.refused.subscribe();
        for _ in 1..BELIEVED {
            news.refuse("node n1 was removed");
        }
        news.welcome();
        for _ in 1..BELIEVED {
            news.refuse("node n1 was removed");
            assert_eq!(*refused.borrow(), None);
        }
        news.refuse("node n1 was removed");
        assert_eq!(refused.borrow().as_deref(), Some("node n1 was removed"));
        news.welcome();
        assert_eq!(*refused.borrow(), None);
    }

    #[test]
    fn a_standing_that_is_repeated_is_no_news() {
        let news = News::new();
        let mut standing = news.standing.subscribe();
        news.stand(Standing { issuer_digest: "d".into(), ..Standing::default() });
        assert!(standing.has_changed().unwrap());
        standing.mark_unchanged();
        news.stand(Standing { issuer_digest: "d".into(), ..Standing::default() });
        assert!(!standing.has_changed().unwrap());
        news.stand(Standing { issuer_digest: "e".into(), ..Standing::default() });
        assert!(standing.has_changed().unwrap());
    }
}
