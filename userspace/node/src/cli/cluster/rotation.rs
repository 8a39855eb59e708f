//! Progress of a roll-over to a new root: bars where stderr is a terminal, otherwise a line per
//! change. On stderr, so that stdout holds the new root alone.

use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use shoal_api::{Cluster, Node, NodeState};

use super::tls::Roots;

/// Characters of a bar.
const BAR: usize = 50;

/// How far a roll-over is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// Digest of the new root.
    desired: String,
    /// Nodes with a certificate under the new root.
    certificates: usize,
    /// Nodes that trust the new root only: nobody does before all have their certificate.
    roots: usize,
    /// All nodes.
    nodes: usize,
    /// Names of nodes that are down and have no new certificate: they hold everything up.
    down: Vec<String>,
}

impl Stand {
    /// Reads it off the cluster and its nodes.
    pub fn of(cluster: &Cluster, nodes: &[Node]) -> Self {
        let roots = Roots::of(cluster);
        let is_new = |node: &&Node| roots.is_current(node) == Some(true);
        let certificates = nodes.iter().filter(is_new).count();
        let all = certificates == nodes.len() && !roots.rotating;
        let mut down: Vec<String> = nodes
            .iter()
            .filter(|node| !is_new(node) && node.state() == NodeState::Down)
            .map(|node| node.hostname().to_owned())
            .collect();
        down.sort();
        Self {
            desired: roots.desired().to_owned(),
            certificates,
            roots: if all { nodes.len() } else { 0 },
            nodes: nodes.len(),
            down,
        }
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.roots == self.nodes
    }

    fn lines(&self, bars: bool) -> [String; 4] {
        let Self { desired, certificates, roots, nodes, down } = self;
        let count = |done: &usize| {
            let bar = if bars { bar(*done, *nodes) + " " } else { String::new() };
            format!("{bar}{done}/{nodes} nodes")
        };
        let down = match down.as_slice() {
            [] => String::new(),
            down => format!("  waiting for nodes that are down: {}", down.join(", ")),
        };
        [
            format!("desired root digest: sha256:{desired}"),
            format!("  rotated TLS certificates: {}", count(certificates)),
            format!("  rotated CA certificates:  {}", count(roots)),
            down,
        ]
    }
}

fn bar(done: usize, all: usize) -> String {
    let filled = (BAR * done).checked_div(all).unwrap_or(BAR).min(BAR);
    format!("[{:<BAR$}]", "=".repeat(filled.saturating_sub(1)) + ">")
}

/// Where progress goes.
pub enum Progress {
    /// Nowhere.
    Quiet,
    /// Lines that changed, with those printed last.
    Lines([String; 4]),
    /// A terminal that is drawn over.
    Bars(Vec<ProgressBar>),
}

impl Progress {
    /// Chooses by what stderr is.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Default::default());
        }
        let bars = MultiProgress::new();
        let style = || ProgressStyle::with_template("{msg}").expect("the template is a literal");
        let line = |_| bars.add(ProgressBar::no_length().with_style(style()));
        Self::Bars((0..4).map(line).collect())
    }

    /// Shows how far it is.
    pub fn show(&mut self, stand: &Stand) {
        match self {
            Self::Quiet => {}
            Self::Lines(last) => {
                let lines = stand.lines(false);
                for (line, last) in lines.iter().zip(last.iter()) {
                    if line != last && !line.is_empty() {
                        eprintln!("{line}");
                    }
                }
                *last = lines;
            }
            Self::Bars(bars) => {
                for (bar, line) in bars.iter().zip(stand.lines(true)) {
                    // Drawn only when it says something new.
                    if bar.message() != line {
                        bar.set_message(line);
                    }
                }
            }
        }
    }

    /// Leaves what was drawn on the screen.
    pub fn stop(&self) {
        if let Self::Bars(bars) = self {
            bars.iter().for_each(ProgressBar::abandon);
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::{NodeDescription, NodeStatus};

    use super::*;
    use crate::cli::cluster::tls::tests::{cluster, under};

    #[test]
    fn roots_are_exchanged_after_the_last_certificate() {
        let mut nodes = vec![under("bb"), under("aa")];
        let stand = Stand::of(&cluster(Some("bb")), &nodes);
        assert!(!stand.is_done());
        assert_eq!(
            stand.lines(false),
            [
                "desired root digest: sha256:bb",
                "  rotated TLS certificates: 1/2 nodes",
                "  rotated CA certificates:  0/2 nodes",
                "",
            ]
        );
        nodes[1] = under("bb");
        let stand = Stand::of(&cluster(Some("bb")), &nodes);
        assert!(!stand.is_done(), "the cluster still has both roots");
        let nodes = [under("aa"), under("aa")];
        let stand = Stand::of(&cluster(None), &nodes);
        assert!(stand.is_done());
        assert_eq!(stand.lines(false)[2], "  rotated CA certificates:  2/2 nodes");
    }

    #[test]
    fn a_node_that_is_down_is_named_as_the_one_waited_for() {
        let mut down = under("aa");
        down.description =
            Some(NodeDescription { hostname: "n3".into(), ..NodeDescription::default() });
        down.status = Some(NodeStatus { state: NodeState::Down.into(), ..NodeStatus::default() });
        let stand = Stand::of(&cluster(Some("bb")), &[under("bb"), down]);
        assert_eq!(stand.lines(false)[3], "  waiting for nodes that are down: n3");
    }

    #[test]
    fn a_bar_is_as_long_for_none_as_for_all() {
        assert_eq!(bar(0, 3), format!("[>{}]", " ".repeat(49)));
        assert_eq!(bar(3, 3), format!("[{}>]", "=".repeat(49)));
        assert_eq!(bar(0, 0), bar(3, 3), "nothing to do is done");
    }
}
