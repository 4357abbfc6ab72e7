//! Causality of available namespaces. (Owned by the leaderless side: dots, contexts, records, node clocks.)
