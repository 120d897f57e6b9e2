//! The maps that CPUs and the loader change at once, as models whose steps loom runs in every order that there is, with
//! every value that a load may still see.
//!
//! What is decided, the functions of `samport-common` and of the loader's plan decide. The models have what lies around
//! it in the kernel programs: which word is read or written when. `tests` has what must hold, and that it does not hold
//! without the rule that a model is there for.

pub mod flow;
pub mod kernel;

/// Runs a model in every order in which threads are interrupted three times at most, beside those in which they wait. All the
/// faults that tests put into models are found by that.
pub fn run(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
