# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_visionprefer_global_optspecs
    string join \n h/help V/version
end

function __fish_visionprefer_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_visionprefer_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_visionprefer_using_subcommand
    set -l cmd (__fish_visionprefer_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c visionprefer -n "__fish_visionprefer_needs_command" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -s V -l version -d 'Print version'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "train" -d 'Fine-tune a diffusion model with a reward'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "plan" -d 'Print what memory a run will take, from configs alone, and what would take less'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "annotate" -d 'Rate or compare images of prompts, by a multimodal language model, the judge of the shapes world, a reward, or earlier answers'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "train-reward" -d 'Train a reward model on ranked images'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "sample" -d 'Draw images from prompts'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "score" -d 'Score images with rewards'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "evaluate" -d 'Compare models on held-out prompts, and write a report'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "report" -d 'Write the report of a run again, or of one that was killed'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "serve" -d 'Watch runs in a browser, live; look through evaluations and folders of images'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "vote" -d 'Let people compare or rate images in a browser; their answers are records like any annotator\'s'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "dataset" -d 'Draw images to train on; inspect, convert and split preference sets'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "export" -d 'Merge LoRAs into a model folder, write a model folder in half precision, or convert a LoRA to another format'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "list" -d 'List what can be chosen by name: rewards, annotators, schedulers, algorithms, devices'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "init" -d 'Write a commented config to start from'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "doctor" -d 'Print what this program is and sees, or check that a device computes rightly'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "completions" -d 'Print the completions of a shell'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "man" -d 'Write the manual pages, or print the program\'s own'
complete -c visionprefer -n "__fish_visionprefer_needs_command" -f -a "debug-report" -d 'Pack what an issue needs into one file: what `doctor` prints and the texts of a run, without secrets'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l algo -d 'The algorithm; without --config, its small offline config is used' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l config -d 'A TOML config [default: a small offline one]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l set -d 'Override a value of the config, e.g. --set run.seed=7 (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -s o -l output -d 'The run\'s folder [default: runs/<algo>-<date>]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l resume -d 'Continue the run in this folder exactly where it stopped; `auto` continues the run in --output, or begins it' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l serve -d 'Serve pages beside the run on which it can be watched, saved and stopped, as `serve` does; they end with the run' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l dry-run -d 'Check everything, load the weights, print the plan, and train nothing'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l prove-resume -d 'Train twice, once stopped half-way and resumed, and check that both runs write the same bytes'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l unchecked-device -d 'Train on a GPU without checking first that it computes rightly (`doctor --check`)'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -l profile -d 'At the end, print where the time went: seconds, share and calls of each stage'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -s q -l quiet -d 'Print only warnings and, at the end, where the result is'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l algo -d 'The algorithm; without --config, its small offline config is used' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l preset -d 'Another config of --algo that ships, such as sd15 (`list algos`)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l config -d 'A TOML config' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l set -d 'Override a value of the config, e.g. --set model.size=[768,768] (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]; it need not be there' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l memory -d 'What the run may take, e.g. 24GiB [default: this machine\'s memory]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l ranks -d 'Predict the speed on so many devices, one rank each, e.g. --ranks 8,64,512' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l tflops -d 'What a rank computes, in TFLOP/s; 400 is 40 % of an H200 in bf16' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l bandwidth -d 'What connects two ranks, in Gbit/s' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l latency -d 'How long a message between two ranks takes at least, in microseconds' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -l json -d 'Print one JSON object instead of text; sizes are in bytes, times in seconds'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand plan" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -s a -l annotator -d 'openai, judge, reward or replay, with its default settings; --set changes them' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l config -d 'A TOML config with [annotator.<name>] and, if needed, [questions] and [sampling]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l set -d 'Override a value of the config, e.g. --set questions.concurrency=8 (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l records -d 'Existing images: records, or any published set that `dataset` reads' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l prompts -d 'Prompts (.txt, .json, .jsonl, .tsv or .parquet); images of them are drawn first, as [sampling] says' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -s o -l output -d 'The folder for records.jsonl, the journal and drawn images' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l vae-tiling -d 'Decode large images in overlapping tiles, of the autoencoder\'s own size or of this many pixels' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]; images are drawn and rewards computed there' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l polish -d 'Polish prompts before images are drawn: a language model removes anything biased, inconsistent or unsafe'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l retry-set-aside -d 'Ask the questions again that were set aside'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l dry-run -d 'Print what it would cost, and ask nothing'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -l vae-slicing -d 'Decode one image of a batch at a time'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -s q -l quiet -d 'Print only warnings and the result'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand annotate" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l records -d 'Ranked images to learn from: records as `annotate` writes them, or a published set that `dataset` reads (repeatable) [default: the config\'s rankings.files]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l config -d 'A TOML config [default: a small offline one]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l set -d 'Override a value of the config, e.g. --set run.seed=7 (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -s o -l output -d 'The run\'s folder [default: runs/<algo>-<date>]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l resume -d 'Continue the run in this folder exactly where it stopped; `auto` continues the run in --output, or begins it' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l serve -d 'Serve pages beside the run on which it can be watched, saved and stopped, as `serve` does; they end with the run' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l dry-run -d 'Check everything, load the weights, print the plan, and train nothing'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l prove-resume -d 'Train twice, once stopped half-way and resumed, and check that both runs write the same bytes'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l unchecked-device -d 'Train on a GPU without checking first that it computes rightly (`doctor --check`)'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -l profile -d 'At the end, print where the time went: seconds, share and calls of each stage'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -s q -l quiet -d 'Print only warnings and, at the end, where the result is'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand train-reward" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l model -d 'A diffusers folder, a single-file checkpoint, a hub id (ORG/NAME[@REVISION]), or the model inside this program' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l vae -d 'Another autoencoder: a file, or a folder with its config' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l model-config -d 'For a single-file checkpoint: a diffusers folder whose configs and tokenizers fit it [default: what its tensors say]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l prediction-type -d 'What the UNet predicts, epsilon or v_prediction, where the files do not say or say it wrongly' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l lora -d 'A LoRA file or the folder of an adapter, added with this weight [default: 1] (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s p -l prompt -d 'A prompt (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l prompts -d 'A file of prompts: .txt (one per line), .json, .jsonl, .tsv or .parquet' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s n -l negative-prompt -d 'What to steer away from' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l scheduler -d 'The sampler [default: the model folder\'s own]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l steps -d 'Denoising steps' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l eta -d 'Noise of the DDIM sampler, 0 to 1' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s g -l guidance-scale -d 'Strength of classifier-free guidance; 1 turns it off [default: 7.5; 3 for embedded:shapes]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s s -l seed -d 'Image i is drawn from seed + i, whatever the batch size' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s W -l width -d 'Pixels [default: the model\'s own]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s H -l height -d 'Pixels [default: the model\'s own]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l num-images -d 'Images per prompt' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l batch-size -d 'Images drawn at once' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s o -l output -d 'The folder for the PNGs' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l latents -d 'Start from these latents: a safetensors file with a tensor `latents` [images, c, h, w] of unit noise' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l save-latents -d 'Write the unit noise that the images started from, for other software' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l dtype -d 'Number format of the UNet and the text encoders: auto, f32, bf16 or f16' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l vae-dtype -d 'Number format of the autoencoder' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l vae-tiling -d 'Decode large images in overlapping tiles, of the autoencoder\'s own size or of this many pixels' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l ema -d 'Take the averaged (EMA) weights of the UNet'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l vae-slicing -d 'Decode one image of a batch at a time'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -l profile -d 'At the end, print where the time went: seconds, share and calls of each stage'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand sample" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -s r -l reward -d 'A reward: the file or folder of a published or trained one, told by what is in it, a config (.toml) with a [reward.<name>], or the name of one that needs no weights (`list rewards`); repeatable, the first one ranks' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -s p -l prompt -d 'The prompt of all the images' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -l manifest -d 'Images with their prompts: one JSON object per line with file_name (relative to this file) and text, caption or prompt' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -l records -d 'Ranked or rated images, ours or a published set: prints how often each reward orders them the same way, by every protocol' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -l batch-size -d 'Images scored at once' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -l json -d 'Print one JSON object per line with file, prompt, score and reward, instead of a table'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand score" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l base -d 'The base model: a diffusers folder, a single-file checkpoint, a hub id, or the model that is part of this program' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l vae -d 'Another autoencoder: a file, or a folder with its config' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l model-config -d 'For a single-file checkpoint: a diffusers folder whose configs and tokenizers fit it [default: what its tensors say]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l prediction-type -d 'What the UNet predicts, epsilon or v_prediction, where the files do not say or say it wrongly' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l tuned -d 'A tuned model (repeatable)' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l lora -d 'A LoRA for the base model (repeatable; each makes a model of its own)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l base-images -d 'Existing images of the base model, a folder with captions, instead of models' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l tuned-images -d 'Images of a tuned model under the same names (repeatable)' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l prompts -d 'Held-out prompts: .txt, .json, .jsonl, .tsv or .parquet' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l train-prompts -d 'Prompts that the model or a reward was trained on; held-out prompts that nearly equal one of them are listed (repeatable)' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s r -l reward -d 'A reward, as for `score` (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l trained-reward -d 'A reward that the model was trained on, and which therefore rises; marked in the report (repeatable)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l votes -d 'What people say of these images: the folder or records.jsonl of `vote --evaluation` (repeatable); the report then shows whom they prefer, and which rewards agree with them' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s o -l output -d 'The folder for results, images and the report' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l seeds -d 'Images per prompt and model' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s s -l seed -d 'The first seed' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l steps -d 'Denoising steps' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s g -l guidance-scale -d 'Strength of classifier-free guidance; 1 turns it off [default: 7.5; 3 for embedded:shapes]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l batch-size -d 'Images drawn and scored at once' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l vae-tiling -d 'Decode large images in overlapping tiles, of the autoencoder\'s own size or of this many pixels' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l shard -d 'Evaluate only part i of k of the prompts; the report is written when all parts are there' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l device -d 'cpu, wgpu, vulkan[:n], metal or cuda[:n]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l ema -d 'Take the averaged (EMA) weights of the UNet'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l strict -d 'Refuse held-out prompts that are near-duplicates of training prompts'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -l vae-slicing -d 'Decode one image of a batch at a time'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand evaluate" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand report" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand serve" -l address -d 'Where to listen; port 0 takes a free one' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand serve" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -l records -d 'Images of records, or of any published set that `dataset` reads' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -l evaluation -d 'Images of an evaluation\'s models, also of one that is still drawing' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -l images -d 'A folder of one model\'s images; those of the same name in the others are compared with them (repeatable)' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -s o -l output -d 'The folder for the votes, and for links to the images' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -s s -l seed -d 'Of the orders in which things are asked; every voter has one of their own' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -l address -d 'Where to listen; port 0 takes a free one' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -l rate -d 'Rate single images on the four aspects instead of comparing two'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand vote" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "shapes" -d 'Draw coloured shapes with captions that describe them'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "validate" -d 'Read every record of a preference set and decode every image'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "stats" -d 'Count what a preference set holds: prompts, images, usable pairs, dropped ties, ratings'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "convert" -d 'Convert a preference set to records, to ImageReward\'s JSON, or to chosen and rejected pairs'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "split" -d 'Hold prompts out, keeping near-duplicates on one side'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and not __fish_seen_subcommand_from shapes validate stats convert split agreement" -f -a "agreement" -d 'Print how far annotators agree, with each other and with themselves'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -s o -l out -d 'The folder for the images and their metadata.jsonl' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -s n -l n -d 'The number of captions' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -s s -l seed -d 'The seed of every scene' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -l split -d 'The part of the world that captions come from' -r -f -a "train\t'Clean images with true captions, without the listed combinations: for an autoencoder'
pretraining\t'To train a base model as on the web: every combination, a share of wrong captions and of spoilt images'
feedback\t'To learn from feedback and to tune: captions without the listed combinations'
validation\t'Says nothing that feedback says, half of it with a listed combination; to choose settings with'
test\t'Says nothing that the other two say; for reported results'"
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -l per-caption -d 'Images per caption. With more than one there is something to rank: the first is as the caption says, others show other scenes or are noised, blurred or partly covered; records.jsonl says which' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -l side -d 'Height and width in pixels' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -l shard -d 'Draw only part i of k; the folder is complete when all parts are drawn' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from shapes" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from validate" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from validate" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from stats" -l json -d 'Print one JSON object'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from stats" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from stats" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l to -d 'The format to write' -r -f -a "records\t'One JSON object per prompt, as `annotate` writes them'
imagereward\t'`{id, prompt, generations, ranking}`'
pairs\t'One `{prompt, chosen, rejected}` per line, as `train --algo dpo` and `kto` read them, with scores where ratings order the images'"
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -s o -l output -d 'The folder for the converted set and copies of the images' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l images -d 'Where the images are [default: beside the set]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l weight -d 'The weight of an aspect in the overall order, e.g. --weight harmlessness=0 (repeatable) [default: 1 each]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l margin -d 'By how much two weighted sums of ratings must differ for a strict order' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l without-images -d 'Do not copy images; their paths stay as they are'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -l skip-problems -d 'Leave out records and images that cannot be used instead of refusing the set'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from convert" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from split" -l fraction -d 'The share of records to hold out' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from split" -l seed -d 'Decides which prompts are held out' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from split" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from split" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from agreement" -l json -d 'Print one JSON object'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from agreement" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand dataset; and __fish_seen_subcommand_from agreement" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l model -d 'The model that the LoRA was made for: a diffusers folder, a single-file checkpoint or a hub id' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l vae -d 'Another autoencoder: a file, or a folder with its config' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l model-config -d 'For a single-file checkpoint: a diffusers folder whose configs and tokenizers fit it [default: what its tensors say]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l prediction-type -d 'What the UNet predicts, epsilon or v_prediction, where the files do not say or say it wrongly' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l lora -d 'A LoRA file or the folder of an adapter, with this weight [default: 1] (repeatable with --merge and --format ldm)' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l format -d 'Write the LoRA in another format, or with `ldm` the whole model, LoRAs added, as one file for A1111 and ComfyUI' -r -f -a "kohya\t'`lora_unet_…lora_down.weight`, with alpha: sd-scripts, A1111, ComfyUI'
diffusers\t'`unet.….lora.down.weight`: diffusers'
peft\t'`unet.….lora_A.weight`: PEFT'
ldm\t'`model.diffusion_model.…`: a whole model in one file, as A1111 and ComfyUI read it'"
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -s o -l output -d 'A new folder with --merge, a new file with --format' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l ema -d 'Take the averaged (EMA) weights of the UNet'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l merge -d 'Write a diffusers folder with the LoRAs added to its weights'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -l half -d 'Write in half precision, with LoRAs added where --merge names any'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -s q -l quiet -d 'Print nothing on standard error but warnings and errors'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand list" -l json -d 'Print one JSON object per line, instead of tables'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand list" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand init" -l preset -d 'sd15: the published recipe for Stable Diffusion 1.5; tiny, shapes: a small model, offline [default: the published recipe]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand init" -s o -l output -d 'A new file [default: standard output]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand init" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand doctor" -l check -d 'Run small cases on a device, cpu, wgpu, vulkan[:n], metal or cuda[:n], and compare them with the numbers in this program [default: the device that VP_DEVICE names, or cpu]' -r
complete -c visionprefer -n "__fish_visionprefer_using_subcommand doctor" -l json -d 'Print one JSON object per line, instead of text'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand completions" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand man" -s h -l help -d 'Print help'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand debug-report" -s o -l output -d 'A new file [default: visionprefer-debug-<date>.zip]' -r -F
complete -c visionprefer -n "__fish_visionprefer_using_subcommand debug-report" -l with-prompts -d 'Leave prompts in'
complete -c visionprefer -n "__fish_visionprefer_using_subcommand debug-report" -s h -l help -d 'Print help'
