//! Images drawn on a GPU against images drawn on the CPU: the predicted x_0 of every step, and the bytes.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::philox::{Philox, Purpose};
use ddpm_model::diffusion::{DiffusionProcess, SamplerConfig, SamplerKind};
use ddpm_model::params::Params;
use ddpm_model::unet::UNet;
use ddpm_train::Kind;
use ddpm_train::drawing::{Glimpse, Guidance, Images, Onlooker, Painter, Request, Start};

use crate::emulator::Emulator;
use crate::{TINY, gpu, plan};

const SAMPLERS: [(SamplerKind, f64); 4] =
    [(SamplerKind::Ddpm, 0.0), (SamplerKind::Ddim, 0.0), (SamplerKind::Ddim, 0.5), (SamplerKind::Dpm, 0.0)];
const CLASSES: &[(&str, &str)] = &[("model.num_class_embeds", "11"), ("loss.label_dropout", "0.3")];
const LEARNED: &[(&str, &str)] = &[("diffusion.variance_type", "learned_range"), ("loss.kind", "hybrid")];

/// A network with random output: a fresh one predicts zeros.
pub(crate) struct Sketch {
    unet: UNet,
    weights: Vec<f32>,
    process: DiffusionProcess,
}

impl Sketch {
    pub(crate) fn new(settings: &[(&str, &str)]) -> Self {
        let plan = plan(TINY, settings);
        let unet = UNet::new(&plan.config().model).unwrap();
        let mut weights = Params::initialise(unet.layout(), 1, &Device::Cpu).unwrap().buffer().to_vec().unwrap();
        let mut normals = vec![0.0; weights.len()];
        Philox::new(2, Purpose::Evaluation).fill_normal(0, 0, &mut normals);
        weights.iter_mut().zip(normals).for_each(|(weight, normal)| *weight += 0.05 * normal);
        Self { unet, weights, process: DiffusionProcess::new(&plan.config().diffusion).unwrap() }
    }

    pub(crate) fn params(&self, device: &Device, dtype: DType) -> Params {
        Params::from_vec(self.unet.layout(), self.weights.clone(), device).unwrap().computing_in(dtype).unwrap()
    }

    pub(crate) fn painter<'a>(&'a self, params: &'a Params) -> Painter<'a> {
        Painter { unet: &self.unet, params, process: &self.process }
    }
}

pub(crate) fn sampler((sampler, eta): (SamplerKind, f64), steps: usize) -> SamplerConfig {
    SamplerConfig { sampler, eta, steps: Some(steps), spacing: sampler.default_spacing(), ..Default::default() }
}

/// Five images in batches of two: the last batch draws one that is not used.
pub(crate) fn request(sampler: &SamplerConfig) -> Request<'_> {
    Request { num: 5, sampler, start: Start::Seed(3), classes: None, guidance: None, batch_size: 2 }
}

/// The predicted x_0 of every batch and step, and the images.
fn draw(painter: &Painter<'_>, request: &Request<'_>) -> (Vec<Vec<f32>>, Images) {
    let (mut seen, mut progress) = (Vec::new(), Vec::new());
    let onlooker = &mut Onlooker {
        progress: &mut |done| progress.push(done),
        proceed: &|| true,
        glimpse: &mut |glimpse: Glimpse<'_>| {
            seen.push(values(glimpse.x_start));
            Ok(())
        },
    };
    let images = painter.draw(request, onlooker).unwrap();
    assert_eq!(progress.last(), Some(&request.num));
    (seen, images)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// f32: a network of this depth rounds in another order, and its output passes through it again at every step.
fn check(settings: &[(&str, &str)], dtype: DType, tolerance: f32, request: &Request<'_>) {
    let (device, _turn) = gpu();
    let sketch = Sketch::new(settings);
    let (on_cpu, on_gpu) = (sketch.params(&Device::Cpu, DType::F32), sketch.params(&device, dtype));
    let want = draw(&sketch.painter(&on_cpu), request);
    let found = draw(&sketch.painter(&on_gpu), request);
    let what = format!("{settings:?}, {dtype:?}, {request:?}");
    assert_eq!((found.1.shape, found.1.not_finite), (want.1.shape, 0), "{what}");
    let flat = |seen: &[Vec<f32>]| seen.concat();
    let (found_all, want_all) = (flat(&found.0), flat(&want.0));
    assert_eq!(found_all.len(), want_all.len(), "{what}");
    let largest = want_all.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    let off = found_all.iter().zip(&want_all).fold(0f32, |most, (f, w)| most.max((f - w).abs())) / largest;
    assert!(off <= tolerance, "{what}: x_0 is off by {off} of {largest}");
    let levels = (tolerance * 127.5).ceil();
    let off = found.1.pixels.iter().zip(&want.1.pixels).map(|(f, w)| f.abs_diff(*w)).max().unwrap();
    assert!(f32::from(off) <= levels, "{what}: a byte is off by {off}");
    let distinct = want.1.pixels.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct > 8, "{what}: {distinct} values are no image");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_of_every_sampler_are_the_cpus() {
    for kind in SAMPLERS {
        check(&[], DType::F32, 1e-3, &request(&sampler(kind, 5)));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_in_16_bits_are_nearly_the_cpus() {
    let sampler = sampler(SAMPLERS[1], 5);
    check(&[], DType::F16, 3e-2, &request(&sampler));
    check(&[], DType::BF16, 2e-1, &request(&sampler));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_of_classes_guided_and_with_a_learned_variance_are_the_cpus() {
    let classes = Some(vec![3, 1, 4]);
    let guidance = Some(Guidance { weight: 1.5, none: 10 });
    let both = [CLASSES, LEARNED].concat();
    for kind in [SAMPLERS[0], SAMPLERS[3]] {
        let sampler = sampler(kind, 4);
        check(LEARNED, DType::F32, 1e-3, &request(&sampler));
        check(CLASSES, DType::F32, 1e-3, &Request { classes: classes.clone(), ..request(&sampler) });
        check(&both, DType::F32, 3e-3, &Request { classes: classes.clone(), guidance, ..request(&sampler) });
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_images_between_two_seeds_are_the_cpus() {
    let sampler = sampler(SAMPLERS[1], 3);
    check(&[], DType::F32, 1e-3, &Request { start: Start::Between(3, 8), ..request(&sampler) });
    check(&[], DType::F32, 1e-3, &Request { num: 1, batch_size: 16, ..request(&sampler) });
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_class_that_does_not_exist_is_refused_before_anything_is_drawn() {
    let (device, _turn) = gpu();
    let (sketch, sampler) = (Sketch::new(CLASSES), sampler(SAMPLERS[1], 2));
    let params = sketch.params(&device, DType::F32);
    let painter = sketch.painter(&params);
    // Beyond the first batch.
    let wrong = Request { classes: Some(vec![0, 1, 11]), ..request(&sampler) };
    assert_eq!(painter.prepare(&wrong).unwrap_err().kind(), Kind::Setting);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_drawing_drawn_twice_or_given_up_gives_the_same_bits() {
    let (device, _turn) = gpu();
    let (sketch, sampler) = (Sketch::new(&[]), sampler(SAMPLERS[0], 6));
    let params = sketch.params(&device, DType::BF16);
    let (painter, request) = (sketch.painter(&params), request(&sampler));
    let mut drawing = painter.prepare(&request).unwrap();
    let mut draw = |most: usize| {
        let passes = std::cell::Cell::new(0);
        let proceed = || {
            passes.set(passes.get() + 1);
            passes.get() <= most
        };
        let glimpse = &mut |_: Glimpse<'_>| Ok(());
        drawing.draw(&mut Onlooker { progress: &mut |_| (), proceed: &proceed, glimpse })
    };
    let first = draw(usize::MAX).unwrap();
    assert_eq!(draw(9).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(draw(usize::MAX).unwrap(), first);
    assert_eq!(painter.draw_unless(&request, &|| false).unwrap().unwrap(), first);
    assert!(painter.draw_unless(&request, &|| true).unwrap().is_none());
}

/// Needs the emulator, whose memory has the size that one says.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_full_memory_is_reported_and_nothing_stays_behind() {
    let (device, _turn) = gpu();
    let Some(emulator) = Emulator::find() else { return };
    let (sketch, sampler) = (Sketch::new(&[]), sampler(SAMPLERS[1], 4));
    let params = sketch.params(&device, DType::F32);
    let (painter, request) = (sketch.painter(&params), request(&sampler));
    let before = painter.draw_unless(&request, &|| false).unwrap();
    let live = emulator.live_bytes();
    for room in [0, 1_000, 10_000] {
        emulator.limit_memory(Some(live + room));
        let drawn = painter.draw_unless(&request, &|| false);
        emulator.limit_memory(None);
        let error = drawn.expect_err("there was no room");
        assert_eq!(error.kind(), Kind::Memory, "{error}");
        assert!(error.to_string().contains("memory is full"), "{error}");
        assert!(emulator.live_bytes() <= live, "{room}: something was not given back");
    }
    // The first step has run and the second is to be recorded.
    let glimpse = &mut |_: Glimpse<'_>| {
        emulator.limit_memory(Some(emulator.live_bytes()));
        Ok(())
    };
    let onlooker = &mut Onlooker { progress: &mut |_| (), proceed: &|| true, glimpse };
    let error = painter.draw(&request, onlooker).expect_err("there was no room for a recording");
    emulator.limit_memory(None);
    assert_eq!(error.kind(), Kind::Memory, "{error}");
    assert!(error.to_string().starts_with("the GPU's memory is full: "), "{error}");
    assert!(error.to_string().contains("recording"), "{error}");
    assert_eq!(painter.draw_unless(&request, &|| false).unwrap(), before);
}
