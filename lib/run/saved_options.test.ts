import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createCommand } from '../../experiment_drgrpo/train.ts';
import { at, run, SHORT } from '../../testing/script.ts';
import { parseOptions } from '../cli/options.ts';
import { asConfigFile } from './saved_options.ts';

const parse = (...flags: string[]) => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);

describe('config.yaml', () => {
  it.each([
    [[]],
    [['--no-eval-on-start', '--gradient-checkpointing', '--learning-rate', '1e-9', '--lora-rank', '2']],
    [['--lora-target', 'q_proj,v_proj', '--report-to', 'tensorboard,wandb', '--critic-type', 'grpo']],
    [['--system-prompt', "true: \"# no\n- 'comment' {x}", '--chat-template-kwargs', '{"a": [1, null], "b": ": "}']],
    [['--output-dir', 'elsewhere']],
  ])('gives the options of %j again', (flags) => {
    const options = parse(...flags);
    const file = at('config.yaml');
    writeFileSync(file, asConfigFile(JSON.parse(JSON.stringify(options))));
    const { config, ...again } = parse('--config', file);
    const { outputDir, ...kept } = options;
    expect(again).toEqual(kept);
  });

  it('says what no file can say', () => {
    expect(asConfigFile({ systemPrompt: '', seed: 3 })).toBe(
      '# system-prompt is empty, which only a command line can say\nseed: "3"\n',
    );
  });

  it('makes a run again, number for number', async () => {
    const [first, second] = [at('first'), at('second')];
    expect(await run([...SHORT, '--max-steps', '2', '--output-dir', first])).toMatchObject({ code: 0 });
    const again = ['--config', join(first, 'config.yaml'), '--output-dir', second];
    expect(await run(again)).toMatchObject({ code: 0 });
    const completions = (folder: string) => readFileSync(join(folder, 'completions.jsonl'), 'utf8');
    expect(completions(second)).toBe(completions(first));
  });
});
