//! The engines that cuDNN's heuristics name for a graph, and which of them are candidates: those that keep to the settings.

use candle_core::DType;
use candle_core::cuda_backend::cudarc::cudnn::sys;
use sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behaviour, cudnnBackendDescriptorType_t as Kind,
    cudnnBackendHeurMode_t as Mode, cudnnBackendNumericalNote_t as Note,
};

use super::Key;
use super::backend::{Answer, BehaviourNote, Descriptor, NumericalNote, Readable};
use super::graph::Graph;

/// Engines that are asked for: all. cuDNN 9.19 has up to 40 for a convolution of the CIFAR-10 model on an H100, and in f32 the
/// first 20 of them all use tensor cores (asked as `scripts/cudnn-engines` does).
const MOST: usize = 200;

/// Notes of an engine that are read. The library knows ten kinds now; a newer one may have more.
const MOST_NOTES: usize = 64;

/// The candidates, best first: those that come compiled, and those that are compiled when they are first used, which takes
/// seconds each.
pub(super) fn candidates(graph: &Graph, mode: Mode, key: &Key) -> Answer<[Vec<Descriptor>; 2]> {
    let mut found = configurations(graph, mode)?;
    found.retain(|configuration| allowed(key, configuration));
    let (later, compiled) = found.into_iter().partition(is_compiled_later);
    Ok([compiled, later])
}

fn configurations(graph: &Graph, mode: Mode) -> Answer<Vec<Descriptor>> {
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics.link(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[&graph.graph])?;
    heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?;
    let heuristics = heuristics.finalise()?;
    heuristics.get_linked(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, MOST)
}

/// Whether an engine keeps to the settings: the same bits every time, no shortened f32, and no operand in less than the
/// format it comes in. (TensorFloat-32 is not noted as that, but as tensor cores alone: what converts f32 makes 16 bits of it.)
fn allowed(key: &Key, configuration: &Descriptor) -> bool {
    let Ok(notes) = notes::<NumericalNote>(configuration, Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE) else { return false };
    let has = |note: Note| notes.contains(&NumericalNote(note as u32));
    let full_precision = key.request.dtype == DType::F32 && !key.tf32;
    let varies = key.deterministic && has(Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
    let rounds = full_precision && has(Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    let shortens = has(Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
        || has(Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
    !varies && !rounds && !shortens
}

/// Whether an engine is no machine code yet.
fn is_compiled_later(configuration: &Descriptor) -> bool {
    let later = BehaviourNote(Behaviour::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32);
    notes(configuration, Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE).is_ok_and(|notes| notes.contains(&later))
}

/// What the library notes of an engine, of one kind.
fn notes<N: Readable>(configuration: &Descriptor, name: Name) -> Answer<Vec<N>> {
    let kind = Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR;
    let engines = configuration.get_linked(Name::CUDNN_ATTR_ENGINECFG_ENGINE, kind, 1)?;
    engines.first().map_or(Ok(Vec::new()), |engine| engine.get(name, MOST_NOTES))
}
