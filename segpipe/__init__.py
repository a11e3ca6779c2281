"""segpipe: train retinal vessel segmentation and run it over large archives, on Ray.

In the order in which data flows:

    errors.py            the errors a user can meet
    flags.py             what all verbs' flags have in common
    progress.py          what a process tells of itself: its log, its progress, its last word
    storage/             a URI -> a store: list, get, atomic put, patience
      entry.py  local.py  s3.py    what stores have in common; a folder; a prefix on S3
      s3_errors.py       what is done about each error of S3
      places.py          an output inside the input
      files.py           JSON and Parquet, and what is said of damaged ones
      settings.py        what an output was started with
      lock.py            one writer for each output
      folders.py         where caches lie
    kernels/             inner loops in C++, built with it: segnet-lite, resunet, masks
    data/                numpy, pillow and OpenCV, never torch
      arrays.py          the arrays' types
      codecs.py          bytes -> photograph, safely; mask -> PNG bytes
      fitting.py         bytes -> canvas, field of view, geometry
      decoder.py         untrusted bytes are fitted in a child process: the parent's side
      decoder_child.py   the child's side, with its limits
      decoder_pipe.py    what both say to each other
      photograph.py      what every reader of a file gives, and the limits that each keeps
      headers.py         what compressed pictures say of themselves, read before they are decoded
      depth.py           samples of any depth -> 8 bits
      pictures.py  tiff.py  jxl.py  dicom.py    the readers
      pillow_memory.py   Pillow's pixels as an array, without a copy
      dicom_objects.py  dicom_frames.py    which objects are photographs; what decodes their frames
      fov.py             the field of view: the aperture through which the retina is seen, found
      frames.py          frames that are grey, white or of two tones; whether a rim is sharp
      circle.py          the circle that a region's rim lies on
      mending.py         what a round field lacks at its rim: vessels, shadows
      tissue.py          dark beside the field: a frame, or retina
      others.py          lit beside the field: a part of it, or another field
      regions.py         regions opened, closed, the largest
      canvas.py          the field put on the network's canvas, and the exact inverse
      classes.py         what each pixel of a label or mask is
      known_sets.py      how each published set names its files
      layouts.py         labelled sets: which files belong together
      unknown_sets.py    what is said of a folder in no known layout
      several.py         several labelled sets below one folder, as one
      globs.py           sets whose files the user names
      nnunet.py          what nnU-Net's dataset.json says
      colours.py         what the colours of arteries and veins mean, by set
      drawings.py        a label's file -> its vessels, and whether its photograph's contrast agrees
      mask_files.py      a mask's file, made anywhere -> its vessels, and its field where it has one
      datasets.py        a labelled photograph's files -> image, label, field of view
      survey.py          what a look at a label tells: its vessels, and whether it can be right
      eye.py             which eye a file's name says
      soft.py            labels that say how sure a vessel is
      crops.py           random crops and augmentation, a pure function of (seed, epoch, image, k)
      synthetic.py       drawn photographs with exact labels
      synthetic_sets.py  the same as files: a labelled set, an archive
    models/              torch, never ray
      network.py         what all networks share: pixels in, any size of image
      segnet.py  unet.py  wnet.py  resunet.py    the networks
      networks.py        their names, and a checkpoint -> its network
      loss.py            network and loss as the one module that is trained
      native.py          network and loss by native layers, on CPUs
      norm.py            batch norm over the rows of all ranks
      checkpoint.py      the one checkpoint format
      fused.py           what follows a convolution is done with it
      tta.py             test-time augmentation: the mean over mirror images
      torch_compat.py    what segpipe uses of torch that is private
      predict.py         canvas -> score: the one path that all share
      forms.py           native forms of networks, and what each can do
      engine.py          how a network runs: the quickest way that keeps its masks
      bf16.py            whether a CPU has such arithmetic
      structures.py      canvas -> maps of arteries and of the disc, by two networks
      shipped.py         the verb that lists what the package ships
      weights/           what the package ships
    metrics.py           counts that add -> Dice, MCC, AUC, ...
    measurement/         mask -> vessel measurements; photograph -> quality hints
      traced.py          mask -> vessels traced, and parts of them
      vessels.py         mask -> density, length, calibre, tortuosity, branch points
      skeleton.py        vessels -> centre lines, traced and smoothed
      calibre.py         widths across centre lines
      curvature.py       how much centre lines bend
      branching.py       branch points and the angles between daughters
      fractal.py         box counting
      structures.py      maps -> arteries, veins, disc, and their measurements
      names.py           which measurements there are of kinds and zones
      kinds.py           the kind of each vessel: artery or vein
      disc.py  zones.py  the optic disc; rings around it, and central equivalents
      agreement.py       mask and label -> clDice, sensitivity by width
      kind_agreement.py  arteries and veins beside a label of them -> Dice, accuracy
      quality.py         focus, exposure, what is readable
      trust.py           how far a mask can be trusted
    plots.py  html.py    what training and evaluation draw; parts of reports
    ray_compat.py        what segpipe uses of Ray that is private
    cluster/             Ray
      session.py         started or joined for one verb
      join.py            the cluster at RAY_ADDRESS, checked and joined
      start.py           a Ray of our own: its folder, its token, tries
      quiet.py           neither what Ray writes itself, nor its handlers of signals
      throttle.py        rests for Ray Data's scheduler
      nodes.py           what nodes have, and what a worker books of it
      workers.py         stages of Ray Data on workers, and their environment
      errors.py          the error of ours behind one of Ray's
    labels.py            every label is looked at before anything starts
    train/               segpipe train
      config.py          its flags, and the parts that they form
      recipes.py         flags by name
      settings.py        those parts, and what an output was started with
      run.py             the verb: what is checked, started, resumed
      job.py             what each rank needs to know
      crop_plan.py       what a training's crops are, and who cuts them
      teachers.py        networks whose scores are mixed into the labels
      stream.py          the crop stream, cut by a pool of croppers
      trainer.py         one rank, in plain torch
      worker.py          a trainer as a worker of Ray Train
      ema.py             the exponential moving average of the weights
      best.py            the weights with the lowest validation loss, and when to stop
      states.py          what a training resumes from, after every epoch
      history.py         history, steps and TensorBoard events
      results.py         the checkpoints and figures of a training's end
      board.py           what workers tell the driver
      watch.py           what the driver shows of it
      check.py           segpipe check: a look at a labelled set
    segment/             segpipe segment
      run.py             its verb
      bulk.py            what every verb on an archive does: list, group, commit, resume, sum up
      inputs.py          which photographs a run takes: a folder, a prefix, a list
      config.py          its flags
      lists.py           CSV and Parquet files that name photographs
      spool.py           what is listed, in order of keys
      output.py          what lies in an output, and in which order it is written
      keys.py            an input's id, and where its mask goes
      rows.py            columns of the results, with type and meaning; rows of older releases
      columns.py         what a column is; those of arteries, veins, disc and zones
      manifest.py        the inputs of an attempt
      parts.py           the groups that are done
      todo.py            what is left, and what was deleted since
      library.py         the same for one photograph in this process: what `import segpipe` offers
      started.py         what an output was started with
      job.py  photo.py   what every process of a run knows; one input on its way
      fetch.py           inputs fetched ahead
      stages.py          what happens to a photograph before and after the network
      group.py           masks and rows that are committed together
      groups.py  pipeline.py    groups as a data set of Ray, and its stages
      compact.py         parts -> results
      report.py          the HTML report
      cut.py             what the report tells of --min-quality
      overlay.py         a photograph with what was found drawn in
      stopwatch.py       seconds by stage, and the bottleneck
      gauges.py          what Prometheus sees
      status.py          segpipe status
    measuring/           segpipe measure: masks that were made elsewhere
      run.py  config.py  its verb and its flags
      pairs.py           which photograph and which field of view belong to a mask
      started.py         what an output was started with
      stages.py          what a worker does with a group of masks
      child.py           untrusted files are decoded and measured in a child process
      measured.py        the files of one mask -> the columns of its row
    evaluate/            segpipe evaluate
      run.py  config.py  its verb and its flags
      stages.py          what happens to a labelled photograph
      discs.py           optic discs of a CSV file, beside those that are found
      bootstrap.py       intervals over photographs
      report.py          figures, page and table
    scaling/             segpipe scale: a job on more and more cores, beside its ceilings
    planning/            segpipe plan: measured costs -> forecast of a run on a larger cluster
    demo.py              segpipe demo
    cli.py               segpipe VERB
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segpipe.segment.library import Model, Result, find_fov, load_model, measure

__version__ = version("segpipe")
__all__ = ["Model", "Result", "__version__", "find_fov", "load_model", "measure"]


def __getattr__(name: str) -> Any:
    """The library is imported when it is first used: the command line starts without it."""
    if name in __all__:
        return getattr(import_module("segpipe.segment.library"), name)
    raise AttributeError(f"module 'segpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
