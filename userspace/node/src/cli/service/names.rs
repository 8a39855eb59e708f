//! Names for services that were given none: an adjective and a swimmer.

use rand::seq::IndexedRandom as _;

const ADJECTIVES: &[&str] = &[
    "amber", "bold", "brisk", "calm", "clear", "clever", "coral", "deep", "eager", "fleet",
    "gentle", "glad", "golden", "keen", "lively", "lucid", "merry", "nimble", "patient", "quick",
    "quiet", "rapid", "silver", "steady", "sunny", "swift", "tidal", "vivid", "wise", "witty",
];
const SWIMMERS: &[&str] = &[
    "anchovy", "barbel", "bream", "carp", "char", "cod", "dace", "darter", "goby", "grayling",
    "gudgeon", "herring", "loach", "mackerel", "minnow", "mullet", "perch", "pike", "pilchard",
    "roach", "salmon", "sardine", "smelt", "sprat", "sturgeon", "tench", "trout", "tuna", "wrasse",
    "zander",
];

/// A name that can stand in DNS.
pub fn random() -> String {
    let mut rng = rand::rng();
    let mut pick = |words: &[&'static str]| *words.choose(&mut rng).expect("the list has words");
    format!("{}_{}", pick(ADJECTIVES), pick(SWIMMERS))
}
