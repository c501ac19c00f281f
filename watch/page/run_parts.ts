/** What the page says of runs as a whole: elements that are made anew when there is something new. */
import type { ToldCurves, ToldRun } from '../told.ts';
import { brief, button, duration, element, fill, picture, visible } from './dom.ts';
import { answerOf } from './rows.ts';

const STATES = { running: 'running', finished: 'finished', stopped: 'stopped', killed: 'its process was killed' };

const sameText = new WeakMap<HTMLElement, string>();
/** Whether an element shows this already: what is not new keeps its focus and its place. */
function isShown(element: HTMLElement, value: unknown): boolean {
  const text = JSON.stringify(value);
  if (sameText.get(element) === text) return true;
  sameText.set(element, text);
  return false;
}

/** The runs to choose from, each with its key. */
export class WatchRuns extends HTMLElement {
  show(runs: ToldRun[], chosen: number, choose: (run: number) => void): void {
    const told = runs.map(({ name, experiment, state }) => ({ name, experiment, state }));
    if (isShown(this, [told, chosen])) return;
    const hadFocus = this.contains(document.activeElement);
    const buttons = told.map(({ name, experiment, state }, r) => {
      const made = button('', () => choose(r), {
        'aria-pressed': String(r === chosen),
        title: `${name}: ${STATES[state]}`,
      });
      made.append(
        element('kbd', {}, String(r + 1)),
        element('span', {}, visible(experiment.replace('experiment_', ''))),
        element('small', {}, visible(name)),
        element('i', { class: `dot ${state}`, 'aria-hidden': 'true' }),
      );
      return made;
    });
    fill(this, ...(runs.length > 1 ? buttons : []));
    if (hadFocus) buttons[chosen]?.focus();
  }
}

/** What a run is, and how far. */
export class WatchSummary extends HTMLElement {
  show(run: ToldRun, isThere: boolean): void {
    const { step, maxSteps, state } = run;
    if (isShown(this, [step, state, run.left, run.newest, run.name, isThere])) return;
    const left = run.left === undefined ? '' : `, about ${duration(run.left)} left`;
    const progress = element('progress', { max: Math.max(1, maxSteps), value: step, 'aria-label': 'steps' });
    const newest = run.newest.map(([name, value]) =>
      element(
        'div',
        {},
        element('dt', {}, name),
        element('dd', {}, /accuracy/.test(name) ? `${(100 * value).toFixed(1)} %` : brief(value)),
      ),
    );
    fill(
      this,
      element(
        'div',
        { class: 'title' },
        element('h1', {}, visible(run.experiment)),
        element(
          'span',
          { class: `state ${state}` },
          element('i', { class: `dot ${state}`, 'aria-hidden': 'true' }),
          STATES[state],
        ),
        element('span', {}, `step ${step} of ${maxSteps}${left}`),
        element('span', { class: 'about' }, `${visible(run.name)} · model ${visible(run.model)}`),
      ),
      progress,
      element('dl', {}, ...newest),
      !isThere &&
        element(
          'p',
          { class: 'lost', role: 'status' },
          'npm run watch has ended: what is shown here is as it was then',
        ),
    );
  }
}

/** The options of a run, and the command that continues it. */
export class WatchOptions extends HTMLElement {
  show({ options, resume }: ToldRun): void {
    if (isShown(this, [options, resume])) return;
    const list = options.list.map(([name, value]) =>
      element('code', {}, `${visible(name)} ${visible(value.length > 200 ? `${value.slice(0, 200)}…` : value)}`),
    );
    const all = element('div', { class: 'options' }, ...list);
    fill(
      this,
      list.length > 0
        ? element(
            'details',
            { open: list.length < 9 },
            element('summary', {}, `options${options.differing ? ' that are not the defaults' : ''}: ${list.length}`),
            all,
          )
        : element('p', { class: 'about' }, 'all options are the defaults'),
      resume !== undefined &&
        element('p', { class: 'about' }, 'to continue it: ', element('code', {}, visible(resume))),
    );
  }
}

/** What a run noticed of itself. */
export class WatchNotices extends HTMLElement {
  show({ notices }: ToldRun): void {
    if (isShown(this, notices)) return;
    const items = notices.map(({ step, text }) =>
      element('li', {}, element('small', {}, step === 0 ? 'at the start' : `step ${step}`), ` ${visible(text)}`),
    );
    const nothing = element('p', { class: 'about' }, 'Nothing so far: no sign that nothing is learnt.');
    fill(this, element('h2', {}, 'What the run noticed'), items.length > 0 ? element('ul', {}, ...items) : nothing);
  }
}

/** Curves of all runs. */
export class WatchCurves extends HTMLElement {
  show({ panels, legend, note }: ToldCurves): void {
    if (isShown(this, [panels, legend])) return;
    const names = legend.map(({ name, svg }) => element('li', {}, picture(svg, '', 'key'), visible(name)));
    fill(
      this,
      element('h2', {}, 'Curves'),
      names.length > 0 && element('ul', { class: 'legend' }, ...names),
      element('div', { class: 'panels' }, ...panels.map(({ label, svg }) => picture(svg, label, 'panel'))),
      note !== '' && element('p', { class: 'about' }, note),
    );
  }
}

/** Held-out questions, answered before the first step and after the last. */
export class WatchAnswers extends HTMLElement {
  show({ answers, state }: ToldRun): void {
    if (isShown(this, [answers, state])) return;
    const asked = answers.map(({ question, answer, before, after }) =>
      element(
        'section',
        { class: 'asked' },
        element(
          'h3',
          { dir: 'auto' },
          visible(question),
          answer !== undefined && element('small', {}, ` answer: ${visible(answer)}`),
        ),
        answerOf('before', before),
        answerOf('after', after),
      ),
    );
    const nothing = element('p', { class: 'about' }, 'None were asked yet.');
    fill(this, element('h2', {}, 'Held-out questions, before and after'), ...(asked.length > 0 ? asked : [nothing]));
  }
}

customElements.define('watch-runs', WatchRuns);
customElements.define('watch-summary', WatchSummary);
customElements.define('watch-options', WatchOptions);
customElements.define('watch-notices', WatchNotices);
customElements.define('watch-curves', WatchCurves);
customElements.define('watch-answers', WatchAnswers);
