import { stripVTControlCharacters } from 'node:util';
import { describe, expect, it, vi } from 'vitest';
import { duration, progress } from './progress.ts';

/** A stream that remembers what was written. */
function recorder(isTTY: boolean, columns = 60) {
  let written = '';
  const stream = {
    isTTY,
    columns,
    write: (text: string) => {
      written += text;
      return true;
    },
  } as unknown as NodeJS.WriteStream;
  return { stream, written: () => written };
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe('without a terminal', () => {
  it('prints the first, every n-th and the last step, and the log', () => {
    const { stream, written } = recorder(false);
    const bar = progress({ total: 7, every: 3, stream });
    for (let step = 1; step <= 7; step++) bar.update(step, { reward: `0.${step}`, 'tok/s': '9' });
    bar.log('saved');
    bar.stop();
    const lines = written().split('\n');
    expect(lines.map((line) => line.split(' · ')[0])).toEqual([
      'step 1/7',
      'step 3/7',
      'step 6/7',
      'step 7/7',
      'saved',
      '',
    ]);
    expect(lines[1]).toMatch(/^step 3\/7 · reward 0.3 · tok\/s 9 · 0s left$/);
    expect(lines[3]).toBe('step 7/7 · reward 0.7 · tok/s 9');
  });

  it('estimates the time left from the steps of this process', async () => {
    const { stream, written } = recorder(false);
    const bar = progress({ total: 1_010, start: 1_000, stream });
    await pause(300);
    bar.update(1_001, {});
    expect(written()).toMatch(/ [345]s left/); // 9 steps of about 0.3 s, however slow the machine is just now
  });
});

describe('without a terminal, between steps', () => {
  it('is silent for half a minute, then says what goes on; that is no step and takes no time from them', () => {
    vi.useFakeTimers({ toFake: ['performance'] });
    try {
      const { stream, written } = recorder(false);
      const bar = progress({ total: 100, every: 10, stream });
      for (let i = 0; i < 70; i++) {
        vi.advanceTimersByTime(1_000);
        bar.note(`evaluating ${i}`);
      }
      expect(written()).toBe('step 0/100 · evaluating 30\nstep 0/100 · evaluating 61\n');
      vi.advanceTimersByTime(2_000);
      bar.update(1, { reward: '1' });
      expect(written()).toContain('\nstep 1/100 · reward 1 · 3m 18s left\n');
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('on a terminal', () => {
  const FIELDS = { reward: '0.532', 'held-out accuracy': '0.415', 'tokens/s': '4781' };
  it.each([
    [120, '██████████░░░░░░░░░░ 25/50 · reward 0.532 · held-out accuracy 0.415 · tokens/s 4781 · 0s left'],
    [80, '████████░░░░░░░ 25/50 · 0.532 reward · 0.415 accuracy · 4781 tokens/s · 0s left'],
    [66, '25/50 · 0.532 reward · 0.415 accuracy · 4781 tokens/s · 0s left'],
    [40, '25/50 · 0.532 reward · 0.415 accuracy …'],
  ])('at %i columns: %s', (columns, line) => {
    const { stream, written } = recorder(true, columns);
    const bar = progress({ total: 50, stream });
    bar.update(25, FIELDS);
    bar.stop();
    expect(stripVTControlCharacters(written())).toBe(`${line}${line}\n`); // drawn once more at its end
  });

  it('shows what goes on between steps in place of what the last one gave', () => {
    const { stream, written } = recorder(true);
    const bar = progress({ total: 4, stream });
    bar.note('evaluating: 3/18 answers');
    bar.stop();
    expect(stripVTControlCharacters(written())).toContain('░░░░░░░░░░░░░░░░░░░░ 0/4 · evaluating: 3/18 answers');
  });

  it('draws one line no wider than the terminal', () => {
    const { stream, written } = recorder(true);
    const bar = progress({ total: 4, stream });
    bar.update(2, { reward: '0.5', note: 'x'.repeat(200) });
    bar.stop();
    const drawn = stripVTControlCharacters(written()).split('\n')[0];
    expect(drawn).toMatch(/^2\/4 · 0.5 reward · x+…/);
    expect(written()).not.toContain('x'.repeat(60));
  });

  it('prints a log line on a line of its own, at once', () => {
    const { stream, written } = recorder(true);
    const bar = progress({ total: 4, stream });
    bar.update(1, {});
    const before = written().length;
    bar.log('eval/accuracy 0.7');
    const lines = written().slice(before).split('\n');
    bar.stop();
    bar.stop();
    bar.log('after');
    expect(stripVTControlCharacters(lines[0]).trim()).toBe('eval/accuracy 0.7');
    expect(lines[1]).toContain('1/4');
    expect(written().endsWith('\nafter\n')).toBe(true);
  });
});

it.each([
  [0.4, '0s'],
  [59.6, '1m 00s'],
  [125, '2m 05s'],
  [7_260, '2h 01m'],
])('duration(%f) is %s', (seconds, text) => expect(duration(seconds)).toBe(text));
