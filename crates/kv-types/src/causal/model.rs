//! A model of the leaderless design: the real records, fill and strip, node clocks, rule of twins and
//! encodings, against explicit causal histories. Two keys of two namespaces share the ring partition, and
//! hence the clocks. Knobs break one rule at a time, and the model must notice.

mod exhaustive;
mod node;
mod random;
