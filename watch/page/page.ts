/** The page: what of which run is shown, and the keys. */
import type { Told, ToldRun, ToldStep } from '../told.ts';
import { button, element, replaceCards, visible } from './dom.ts';
import { cardOf, MEANINGS, mostOf, rewardsOf, SHADES, type Shade } from './rows.ts';
import { WatchAnswers, WatchCurves, WatchNotices, WatchOptions, WatchRuns, WatchSummary } from './run_parts.ts';
import { findSource } from './source.ts';

/** Milliseconds from one drawing of curves to the next: so many times as long as it took, for it takes time from the run. */
const [REDRAW, REST] = [{ least: 2000, most: 10_000 }, 20];

const KEYS = '← → steps · ↑ ↓ completions · Home, End first and newest step · 1 … 9 runs';

const EXPLANATION =
  'Completions of one prompt. The advantage A: how much better one is than the group. Better ones become more likely, worse ones less.';

class WatchPage extends HTMLElement {
  readonly #source = findSource();
  #told: Told = { runs: [], version: 0 };
  #isThere = true;
  /** the run that is shown, the one beside it, and the place of the step; `isNewest`: the newest is followed */
  #shown: { run: number; beside?: number; at: number; isNewest: boolean } = { run: 0, at: 0, isNewest: true };
  #shade: Shade = 'log-prob';
  /** steps that are shown, in the order of the columns; undefined: there is none that fits */
  #steps: (ToldStep | undefined)[] = [];
  #asked = 0;
  #drawn = { version: -1, next: 0, isBusy: false };

  readonly #runs = new WatchRuns();
  readonly #summary = new WatchSummary();
  readonly #options = new WatchOptions();
  readonly #notices = new WatchNotices();
  readonly #curves = new WatchCurves();
  readonly #answers = new WatchAnswers();
  readonly #slider = element('input', { type: 'range', min: 0, max: 0, value: 0, 'aria-label': 'step' });
  readonly #place = element('output', { 'aria-live': 'off' });
  readonly #shades = element('fieldset', { class: 'shades' }, element('legend', {}, 'tokens shaded by'));
  readonly #meaning = element('small', { class: 'meaning' });
  readonly #besides = element('label', { class: 'beside' });
  readonly #columns = element('div', { class: 'columns' });

  connectedCallback(): void {
    for (const shade of SHADES) {
      const radio = element('input', { type: 'radio', name: 'shade', value: shade, checked: shade === this.#shade });
      radio.addEventListener('change', () => {
        this.#shade = shade;
        // Weights are asked for only where somebody wants to see them.
        if (shade === 'weight') void this.#load();
        else this.#showSteps();
      });
      this.#shades.append(element('label', {}, radio, shade));
    }
    this.#slider.addEventListener('input', () => this.#go(Number(this.#slider.value)));
    const steps = element(
      'div',
      { class: 'steps' },
      button('←', () => this.#go(this.#shown.at - 1), { 'aria-label': 'step before' }),
      this.#slider,
      button('→', () => this.#go(this.#shown.at + 1), { 'aria-label': 'next step' }),
      button('newest', () => this.#go(Number.POSITIVE_INFINITY)),
      this.#place,
    );
    const groups = element(
      'section',
      { class: 'groups' },
      element('h2', {}, 'Groups'),
      element('p', { class: 'about' }, EXPLANATION),
      steps,
      element('div', { class: 'choices' }, this.#shades, this.#meaning, this.#besides),
      this.#columns,
    );
    const aside = element('div', { class: 'aside' }, this.#notices, this.#curves, this.#answers);
    this.append(
      element('header', {}, this.#runs, this.#summary, this.#options),
      element('main', {}, groups, aside),
      element('footer', {}, KEYS),
    );
    addEventListener('keydown', (event) => this.#press(event));
    document.addEventListener('visibilitychange', () => this.#draw());
    this.#source.listen(
      (told) => this.#hear(told),
      (isThere) => {
        this.#isThere = isThere;
        this.#showRun();
      },
    );
  }

  get #run(): ToldRun | undefined {
    return this.#told.runs[this.#shown.run];
  }

  get #cards(): HTMLElement[] {
    return [...this.#columns.querySelectorAll<HTMLElement>('.card')];
  }

  #hear(told: Told): void {
    this.#told = told;
    this.#showRun();
    const last = Math.max(0, (this.#run?.groups ?? 0) - 1);
    const isBehind = this.#shown.isNewest ? this.#shown.at !== last : this.#shown.at > last;
    if (isBehind || this.#steps[0] === undefined)
      this.#go(this.#shown.isNewest ? Number.POSITIVE_INFINITY : this.#shown.at);
    void this.#draw();
  }

  /** Draws the curves, unless they have just been drawn: then in a moment; and not while nobody sees them. */
  async #draw(): Promise<void> {
    const { version, next, isBusy } = this.#drawn;
    if (isBusy || version === this.#told.version || document.hidden) return;
    this.#drawn.isBusy = true;
    await new Promise((resolve) => setTimeout(resolve, next - Date.now()));
    const [began, drawn] = [Date.now(), this.#told.version];
    this.#curves.show(await this.#source.curves());
    const rest = Math.min(REDRAW.most, Math.max(REDRAW.least, REST * (Date.now() - began)));
    this.#drawn = { version: drawn, next: Date.now() + rest, isBusy: false };
    await this.#draw();
  }

  #showRun(): void {
    const run = this.#run;
    if (!run) return;
    this.#runs.show(this.#told.runs, this.#shown.run, (r) => this.#choose(r));
    this.#summary.show(run, this.#isThere);
    this.#options.show(run);
    this.#notices.show(run);
    this.#answers.show(run);
    this.#showBesides();
  }

  /** The other runs that may stand beside. */
  #showBesides(): void {
    const { runs } = this.#told;
    const options = runs.map(({ name, experiment }, r) => ({
      r,
      text: `${r + 1}: ${visible(experiment)} ${visible(name)}`,
    }));
    const others = options.filter(({ r }) => r !== this.#shown.run);
    const key = JSON.stringify([others, this.#shown.beside ?? '']);
    if (this.#besides.dataset.shown === key) return;
    this.#besides.dataset.shown = key;
    const select = element(
      'select',
      {},
      element('option', { value: '' }, 'nothing'),
      ...others.map(({ r, text }) => element('option', { value: r, selected: r === this.#shown.beside }, text)),
    );
    select.addEventListener('change', () => {
      const { beside, ...shown } = this.#shown;
      this.#shown = select.value === '' ? shown : { ...shown, beside: Number(select.value) };
      this.#go(this.#shown.at);
    });
    this.#besides.replaceChildren(...(others.length > 0 ? ['beside it, on the same question: ', select] : []));
  }

  #choose(run: number): void {
    if (!this.#told.runs[run]) return;
    const { beside, ...shown } = this.#shown;
    this.#shown = { ...shown, run, ...(beside === undefined || beside === run ? {} : { beside }) };
    this.#showRun();
    this.#go(this.#shown.isNewest ? Number.POSITIVE_INFINITY : this.#shown.at);
  }

  /** Shows the step at a place, or the nearest that there is. */
  #go(place: number): void {
    const last = (this.#run?.groups ?? 0) - 1;
    const at = Math.min(Math.max(0, place), Math.max(0, last));
    this.#shown = { ...this.#shown, at, isNewest: place >= last };
    this.#slider.max = String(Math.max(0, last));
    this.#slider.value = String(at);
    void this.#load();
  }

  async #load(): Promise<void> {
    const asked = ++this.#asked;
    const { run, beside, at } = this.#shown;
    const weighed = this.#shade === 'weight';
    const steps = await Promise.all([
      this.#source.step(run, at, weighed),
      ...(beside === undefined ? [] : [this.#source.like(beside, { run, at }, weighed)]),
    ]);
    if (asked !== this.#asked) return; // another one was asked for meanwhile
    this.#steps = steps;
    this.#showSteps();
  }

  #showSteps(): void {
    const [step] = this.#steps;
    const run = this.#run;
    if (!run) return;
    const some =
      run.groups < run.allGroups ? ` (${run.groups} of ${run.allGroups} logged steps are in this report)` : '';
    this.#place.value = step ? `step ${step.step}${some}` : 'no completions yet';
    const rows = this.#steps.flatMap((found) => found?.groups ?? []).flatMap((group) => group.rows);
    const hasTools = rows.some(({ logProbs }) => logProbs?.includes(null));
    const isUnknown = this.#shade === 'weight' && !rows.some(({ weights }) => weights);
    const meaning = isUnknown ? 'what tokens of this run weigh is not known' : MEANINGS[this.#shade];
    const without = this.#shade === 'weight' && !isUnknown ? 'as its train.ts says, without β' : '';
    this.#meaning.textContent = [meaning, without, hasTools ? 'dotted: a tool wrote it' : '']
      .filter(Boolean)
      .join('; ');
    const { run: first, beside } = this.#shown;
    const { advantage: largest } = mostOf(rows);
    const columns = this.#steps.map((found, c) =>
      columnOf(found, this.#told.runs[c === 0 ? first : beside!], this.#shade, largest),
    );
    replaceCards(this.#columns, ...(this.#steps.length > 1 || step ? columns : []));
  }

  #focus(card: number): void {
    const cards = this.#cards;
    const chosen = cards[Math.min(Math.max(0, card), cards.length - 1)];
    chosen?.focus({ preventScroll: true });
    chosen?.scrollIntoView({ block: 'nearest' });
  }

  #press(event: KeyboardEvent): void {
    const { key, target } = event;
    // These have a use for the keys themselves.
    const isTaken = target instanceof HTMLElement && target.closest('select, input[type="radio"]');
    if (isTaken || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const { at } = this.#shown;
    const focused = this.#cards.findIndex((card) => card.contains(document.activeElement));
    const acts: Record<string, () => void> = {
      ArrowLeft: () => this.#go(at - 1),
      ArrowRight: () => this.#go(at + 1),
      Home: () => this.#go(0),
      End: () => this.#go(Number.POSITIVE_INFINITY),
      ArrowUp: () => this.#focus(focused < 0 ? 0 : focused - 1),
      ArrowDown: () => this.#focus(focused + 1),
    };
    const act = /^[1-9]$/.test(key) ? () => this.#choose(Number(key) - 1) : acts[key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

/** The groups of a step of a run. `largest`: advantage on the page, so that what stands side by side has one scale. */
function columnOf(step: ToldStep | undefined, run: ToldRun, shade: Shade, largest: number): HTMLElement {
  const name = visible(run.experiment.replace('experiment_', ''));
  const title = element('h3', {}, `${name} `, element('small', {}, visible(run.name)));
  const nothing = 'This run was not asked that question in a step that it has logged.';
  if (!step) return element('div', { class: 'column' }, title, element('p', { class: 'about' }, nothing));
  const { weight } = mostOf(step.groups.flatMap(({ rows }) => rows)); // each loss has a scale of its own
  const most = { advantage: largest, weight };
  const groups = step.groups.map(({ question, answer, rows }) =>
    element(
      'section',
      { class: 'group' },
      element(
        'div',
        { class: 'prompt', tabindex: question.length > 500 ? 0 : undefined },
        element('small', {}, `step ${step.step}, prompt`),
        element('p', { dir: 'auto' }, visible(question)),
        answer !== undefined && element('small', {}, `answer: ${visible(answer)}`),
        element('small', {}, rewardsOf(rows)),
      ),
      ...rows.map((row, i) => cardOf(row, i, rows, shade, most)),
    ),
  );
  return element('div', { class: 'column' }, title, ...groups);
}

customElements.define('watch-page', WatchPage);
